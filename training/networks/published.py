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
        gmacs: multiply-adds of one crop of 256x192, in units of ``count``.
        ap: COCO val keypoint AP in percent at 256x192, with the source's own detector boxes.
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
)  # fmt: skip
