"""What papers and their code publish about the networks here: size, multiply-adds, accuracy.

Plain data, one entry for each variant that has a published figure, and the light variants for comparison. The table
of ``python -m training networks`` and the tests hold the networks to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Published:
    """One network variant and its figures; None where none is published.

    Attributes:
        label: row of the table.
        network: a recipe's ``network`` section.
        parameters: millions.
        gmacs: multiply-adds of one crop of 256x192 (a detector: of one picture), in units of ``count``.
        ap: COCO val keypoint AP in percent at 256x192, with the source's own detector boxes; a detector's box AP over
            all categories.
        source: where ``parameters``, ``gmacs`` and ``ap`` come from.
        count: how ``gmacs`` was counted. ``macs``: what is multiplied, in units of 10^9. ``outputs``: the kernel's
            multiply-adds at each output place, also of transposed convolutions (which multiply fewer), in units of
            2^30, as the SimpleBaseline and HRNet code prints them.
        tolerance: largest difference to the published figures, as a share, that is no error here: two digits as
            printed unless the source's own code differs from its paper (``source`` then says so).
        kind: a pose network, or a person detector (``network`` is then a detector recipe's section).
        joints: K, for one head.
    """

    label: str
    network: dict[str, Any] = field(hash=False)
    parameters: float | None = None
    gmacs: float | None = None
    ap: float | None = None
    source: str = ""
    count: Literal["macs", "outputs"] = "macs"
    tolerance: float = 0.01
    kind: Literal["pose", "detector"] = "pose"
    joints: int = 17


_HOURGLASS = "Newell et al. 2016, counted on its PyTorch code; AP: runs of the MSPN paper"
_BASELINE = "Xiao et al. 2018, as the HRNet code counts"
_CPN = "Chen et al. 2017; 102 MB of float32; the layers of its code: 7.2 G"
_OURS = "for CPUs"
_HRNET = "Sun et al. 2019, as its code counts"
_CCM = "Zhang et al. 2020 print neither; mixers of 128 channels are ours"
_MSPN = "Li et al. 2019, counted on its PyTorch code (the paper prints 4.4 / 9.6 / 14.7 / 19.9 GFLOPs)"
_RSN_18 = "Cai et al. 2020 (2.5 GFLOPs there), counted on its PyTorch code, whose own run has AP 70.4"
_RSN = "Cai et al. 2020; block widths are ours, the paper's are not public"
_REPORT = "Megvii's report on COCO 2018 (R101 there: 73.7); ours with ResNet's channels"
_STEPS = {"name": "rsn", "layers": [3, 4, 6, 3], "expansion": 4, "branch": 24, "prm": False}
_TORCHVISION = "torchvision's documentation; its frozen batch-norms count as no parameters"

PUBLISHED: tuple[Published, ...] = (
    Published("Hourglass, 1 stack", {"name": "hourglass", "stacks": 1}, 3.43, 3.86, 65.4, _HOURGLASS),
    Published("Hourglass, 2 stacks", {"name": "hourglass", "stacks": 2}, 6.57, 6.25, 70.9, _HOURGLASS),
    Published("Hourglass, 4 stacks", {"name": "hourglass", "stacks": 4}, 12.86, 11.03, 71.3, _HOURGLASS),
    Published("Hourglass, 8 stacks", {"name": "hourglass", "stacks": 8}, 25.44, 20.59, 71.6, _HOURGLASS),
    Published(
        "Hourglass, light", {"name": "hourglass", "stacks": 2, "width": 32, "growth": 32, "dense": True}, source=_OURS
    ),
    Published(
        "Simple baseline, R50", {"name": "simple_baseline", "backbone": "resnet50"},
        34.0, 8.9, 70.4, _BASELINE, count="outputs", tolerance=0.015,
    ),
    Published(
        "Simple baseline, R101", {"name": "simple_baseline", "backbone": "resnet101"},
        53.0, 12.4, 71.4, _BASELINE, count="outputs",
    ),
    Published(
        "Simple baseline, R152", {"name": "simple_baseline", "backbone": "resnet152"},
        68.6, 15.7, 72.0, _BASELINE, count="outputs",
    ),
    Published("Simple baseline, R18", {"name": "simple_baseline", "backbone": "resnet18"}),
    Published(
        "Simple baseline, light", {"name": "simple_baseline", "backbone": "light", "deconv_channels": 96}, source=_OURS
    ),
    # 17 % over the paper's multiply-adds, as MSPN's own code is over its paper; the structure is that of CPN's code.
    Published("CPN, R50", {"name": "cpn", "backbone": "resnet50"}, 26.7, 6.2, 69.4, _CPN, tolerance=0.17),
    Published("CPN, R101", {"name": "cpn", "backbone": "resnet101"}, source="Chen et al. 2017"),
    Published("CPN, light", {"name": "cpn", "backbone": "light", "pyramid_channels": 64}, source=_OURS),
    Published("MSPN, 1 stage", {"name": "mspn", "stages": 1}, 25.14, 5.07, 71.5, _MSPN),
    Published("MSPN, 2 stages", {"name": "mspn", "stages": 2}, 56.87, 11.26, 74.5, _MSPN),
    Published("MSPN, 3 stages", {"name": "mspn", "stages": 3}, 88.59, 17.45, 75.2, _MSPN),
    Published("MSPN, 4 stages", {"name": "mspn", "stages": 4}, 120.32, 23.64, 75.9, _MSPN),
    Published(
        "MSPN, 1 stage, R101", {"name": "mspn", "stages": 1, "layers": [3, 4, 23, 3]},
        ap=73.1, source="Li et al. 2019",
    ),
    Published(
        "MSPN, 1 stage, blocks 4, 8, 16, 3", {"name": "mspn", "stages": 1, "layers": [4, 8, 16, 3]},
        ap=74.1, source=_REPORT,
    ),
    Published(
        "MSPN, 2 stages, R18", {"name": "mspn", "blocks": "basic", "layers": [2, 2, 2, 2]},
        ap=71.6, source="Li et al. 2019",
    ),
    Published(
        "MSPN, light", {"name": "mspn", "blocks": "basic", "layers": [1, 1, 1, 1], "width": 32, "features": 64},
        source=_OURS,
    ),
    Published("RSN-18", {"name": "rsn", "prm": False}, 9.16, 2.25, 73.6, _RSN_18),
    Published("RSN-18, 4 stages", {"name": "rsn", "stages": 4, "prm": False}, 38.46, 9.22, source=_RSN_18),
    Published("RSN-18 with PRM", {"name": "rsn"}, source="Cai et al. 2020"),
    Published("RSN-50", _STEPS, gmacs=6.4, ap=74.7, source=_RSN, tolerance=0.03),
    Published("RSN-50, 2 stages", {**_STEPS, "stages": 2}, gmacs=13.9, ap=77.2, source=_RSN, tolerance=0.03),
    Published("RSN-50, 3 stages", {**_STEPS, "stages": 3}, gmacs=20.7, ap=78.2, source=_RSN, tolerance=0.03),
    Published("RSN-50, 4 stages", {**_STEPS, "stages": 4}, gmacs=29.3, ap=79.0, source=_RSN, tolerance=0.03),
    Published("RSN-101", {**_STEPS, "layers": [3, 4, 23, 3]}, gmacs=11.5, ap=75.8, source=_RSN, tolerance=0.03),
    Published("RSN, light", {"name": "rsn", "width": 32, "features": 64}, source=_OURS),
    Published("HRNet-W32", {"name": "hrnet"}, 28.5, 7.1, 74.4, _HRNET, count="outputs"),
    Published("HRNet-W48", {"name": "hrnet", "width": 48}, 63.6, 14.6, 75.1, _HRNET, count="outputs"),
    Published(
        "HRNet, light", {"name": "hrnet", "width": 16, "stem": 32, "blocks": 2, "modules": [1, 1, 1]}, source=_OURS
    ),
    Published("CCM on HRNet-W32", {"name": "ccm"}, source=_CCM),
    Published("CCM on HRNet-W48", {"name": "ccm", "backbone": "hrnet_w48"}, source=_CCM),
    Published("CCM on R50", {"name": "ccm", "backbone": "resnet50"}, source=_CCM),
    Published(
        "CCM, light", {"name": "ccm", "backbone": "light", "features": 48, "mixers": 2, "width": 48}, source=_OURS
    ),
    Published(
        "Faster R-CNN R50, 640x640", {"name": "fasterrcnn_resnet50_fpn", "classes": "coco80"},
        41.755286, ap=37.0, source=_TORCHVISION, kind="detector",
    ),
    Published(
        "Faster R-CNN R50 v2, 640x640", {"name": "fasterrcnn_resnet50_fpn_v2", "classes": "coco80"},
        43.712278, ap=46.7, source="torchvision's documentation", kind="detector",
    ),
    Published(
        "Faster R-CNN MobileNetV3, 640x640", {"name": "fasterrcnn_mobilenet_v3_large_fpn", "classes": "coco80"},
        19.386354, ap=32.8, source=_TORCHVISION, kind="detector",
    ),
    Published(
        "Faster R-CNN MobileNetV3 320, 384x384", {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "classes": "coco80"},
        19.386354, ap=22.8, source=_TORCHVISION, kind="detector",
    ),
    Published("Faster R-CNN, light, 384x384", {"name": "faster_rcnn"}, source=_OURS, kind="detector"),
    Published("One stage, light, 384x384", {"name": "one_stage"}, source=_OURS, kind="detector"),
)  # fmt: skip
