"""Weights that others publish at addresses that stay: what they are, where they lie, and on which terms.

The projects' own figures, on COCO val2017 with the projects' own boxes; none of them was measured here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MMPOSE = "https://download.openmmlab.com/mmpose/top_down"
_MMPOSE_TERMS = "Apache-2.0 (mmpose); nothing of its own is said of the weights"
_TORCHVISION_TERMS = "BSD-3-Clause (torchvision), which says that the terms of the data may hold for weights"
_VITPOSE_TERMS = "Apache-2.0 (ViTPose's code); nothing of its own is said of the weights: see the model's page"
COCO = "COCO train2017: annotations CC BY 4.0, pictures under their photographers' terms"


@dataclass(frozen=True)
class Published:
    """One set of weights.

    Attributes:
        name: on the command line.
        layout: how the tensors are named, see :mod:`training.pretrained.checkpoint`; ``detector`` for torchvision's.
        source: address, id on a hub, or torchvision's name.
        megabytes: about, of the download; None where only the hub says.
        figure: published accuracy; empty where none was found.
        licence: what the publisher says.
        size: width, height of the crops.
        data: what they were trained on.
    """

    name: str
    layout: str
    source: str
    megabytes: int | None
    figure: str
    licence: str
    size: tuple[int, int] = (192, 256)
    data: str = COCO

    @property
    def hash_prefix(self) -> str | None:
        """First digits of the file's SHA-256, which mmpose's file names hold: ``name-c78dce93_20200708.pth``."""
        match = re.search(r"-([0-9a-f]{8})_\d{8}\.pth$", self.source)
        return match[1] if match else None


def _mmpose(name: str, layout: str, file: str, megabytes: int, ap: float) -> Published:
    size = (288, 384) if "384x288" in file else (192, 256)
    return Published(name, layout, f"{_MMPOSE}/{file}.pth", megabytes, f"keypoint AP {ap}", _MMPOSE_TERMS, size)


def _torchvision(name: str, megabytes: int, ap: float) -> Published:
    return Published(name, "detector", name, megabytes, f"box AP {ap}, 80 classes", _TORCHVISION_TERMS)


def _vitpose(variant: str, megabytes: int | None, ap: float | None, data: str = COCO) -> Published:
    identity = f"usyd-community/vitpose-{variant}"
    figure = "" if ap is None else f"keypoint AP {ap}"
    return Published(f"vitpose_{variant}", "vitpose", identity, megabytes, figure, _VITPOSE_TERMS, data=data)


_PLUS = (
    f"{COCO}; AI Challenger (research only), MPII (non-commercial), AP-10K, APT-36K, COCO-WholeBody (non-commercial)"
)

PUBLISHED: tuple[Published, ...] = (
    _torchvision("fasterrcnn_resnet50_fpn", 160, 37.0),
    _torchvision("fasterrcnn_resnet50_fpn_v2", 167, 46.7),
    _torchvision("fasterrcnn_mobilenet_v3_large_fpn", 74, 32.8),
    _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", 74, 22.8),
    _mmpose("hrnet_w32", "hrnet", "hrnet/hrnet_w32_coco_256x192-c78dce93_20200708", 114, 74.9),
    _mmpose("hrnet_w32_384", "hrnet", "hrnet/hrnet_w32_coco_384x288-d9f0d786_20200708", 114, 76.0),
    _mmpose("hrnet_w48", "hrnet", "hrnet/hrnet_w48_coco_256x192-b9e0b3ab_20200708", 254, 75.6),
    _mmpose("hrnet_w48_384", "hrnet", "hrnet/hrnet_w48_coco_384x288-314c8528_20200708", 254, 76.7),
    _mmpose("simple_baseline_r50", "simple_baseline", "resnet/res50_coco_256x192-ec54d7f3_20200709", 136, 71.8),
    _mmpose("simple_baseline_r50_384", "simple_baseline", "resnet/res50_coco_384x288-e6f795e9_20200709", 136, 73.1),
    _mmpose("simple_baseline_r101", "simple_baseline", "resnet/res101_coco_256x192-6e6babf0_20200708", 212, 72.6),
    _mmpose("simple_baseline_r152", "simple_baseline", "resnet/res152_coco_256x192-f6e307c2_20200709", 275, 73.5),
    _mmpose("simple_baseline_r152_384", "simple_baseline", "resnet/res152_coco_384x288-3860d4c9_20200709", 275, 75.0),
    _mmpose("mspn_1", "mspn", "mspn/mspn50_coco_256x192-8fbfb5d0_20201123", 101, 72.3),
    _mmpose("mspn_2", "mspn", "mspn/2xmspn50_coco_256x192-c8765a5c_20201123", 227, 75.4),
    _mmpose("mspn_3", "mspn", "mspn/3xmspn50_coco_256x192-e348f18e_20201123", 354, 75.8),
    _mmpose("mspn_4", "mspn", "mspn/4xmspn50_coco_256x192-7b837afb_20201123", 481, 76.5),
    _mmpose("rsn_18", "rsn", "rsn/rsn18_coco_256x192-72f4b4a7_20201127", 37, 70.3),
    _mmpose("rsn_50", "rsn", "rsn/rsn50_coco_256x192-72ffe709_20201127", 77, 72.2),
    _mmpose("rsn_50_2", "rsn", "rsn/2xrsn50_coco_256x192-50648f0e_20201127", 162, 74.6),
    _mmpose("rsn_50_3", "rsn", "rsn/3xrsn50_coco_256x192-58f57a68_20201127", 247, 74.9),
    _vitpose("base-simple", 344, None),
    _vitpose("base", 360, 75.8),
    _vitpose("plus-small", None, 75.8, _PLUS),
    _vitpose("plus-base", None, 77.0, _PLUS),
    _vitpose("plus-large", None, 78.6, _PLUS),
    _vitpose("plus-huge", None, 79.4, _PLUS),
)
