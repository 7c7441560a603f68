"""Person detectors by name: the one list that recipes and export look in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from training.networks.base import named_config
from training.networks.detector_base import DetectorConfig
from training.networks.faster_rcnn import DetectorNetwork
from training.networks.one_stage import OneStageConfig
from training.networks.torchvision_detectors import (
    MobileNetConfig,
    ResNet50Config,
    ResNet50V2Config,
    SmallMobileNetConfig,
)

DETECTORS: dict[str, type[DetectorConfig]] = {
    "faster_rcnn": DetectorNetwork,
    "one_stage": OneStageConfig,
    "fasterrcnn_resnet50_fpn": ResNet50Config,
    "fasterrcnn_resnet50_fpn_v2": ResNet50V2Config,
    "fasterrcnn_mobilenet_v3_large_fpn": MobileNetConfig,
    "fasterrcnn_mobilenet_v3_large_320_fpn": SmallMobileNetConfig,
}


def detector_config(value: Any) -> DetectorConfig:
    """A recipe's ``network`` section to the config of the detector it names (our own when it names none).

    Raises:
        ValueError: an unknown name, or a field that does not fit (pydantic's ValidationError is one).
    """
    return named_config(value, DETECTORS, "faster_rcnn", "detector")


AnyDetector = Annotated[SerializeAsAny[DetectorConfig], BeforeValidator(detector_config)]
