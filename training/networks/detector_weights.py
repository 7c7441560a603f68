"""Published weights for torchvision's detectors, downloaded or from a file, and what stays fixed when tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, get_model_weights
from torchvision.models.detection import FasterRCNN
from torchvision.models.mobilenetv3 import MobileNet_V3_Large_Weights
from torchvision.ops import FrozenBatchNorm2d

from training.recipe import RecipeError

State = Mapping[str, Tensor]
_PREDICTOR = "roi_heads.box_predictor."
# Rows of the predictor's tensors for each class: one score, four box deltas.
_ROWS = {"cls_score.weight": 1, "cls_score.bias": 1, "bbox_pred.weight": 4, "bbox_pred.bias": 4}
_RESNET_LAYERS = ("layer4", "layer3", "layer2", "layer1", "conv1")


def initialise_detector(model: FasterRCNN, name: str, source: Literal["coco"] | Path) -> None:
    """Load a whole detector; heads of 91 classes become person and background where the model has only those.

    Args:
        model: torchvision's network.
        name: torchvision's name of it.
        source: ``"coco"`` to download torchvision's weights, or a ``.pth`` with them (also one of this project's
            ``model.pt`` of the same network).

    Raises:
        RecipeError: no internet, no such file, or weights of another network.
    """
    state = _download(get_model_weights(name).DEFAULT, "init") if source == "coco" else _read(source, "init")
    where = f"network.init {source}"
    wanted = model.state_dict()
    cut = dict(state)
    for tail, each in _ROWS.items():
        key = _PREDICTOR + tail
        if key in cut and key in wanted and len(cut[key]) > len(wanted[key]) == 2 * each:
            cut[key] = cut[key][: 2 * each]
    _load(model, cut, where)


def initialise_backbone(model: FasterRCNN, name: str, source: Literal["imagenet"] | Path) -> None:
    """Load an ImageNet classifier's layers into the backbone. Arguments and errors as :func:`initialise_detector`."""
    if source == "imagenet":
        mobile = "mobilenet" in name
        # torchvision's detectors were trained from the first generation of ImageNet weights.
        weights = MobileNet_V3_Large_Weights.IMAGENET1K_V1 if mobile else ResNet50_Weights.IMAGENET1K_V1
        state = _download(weights, "backbone_init")
    else:
        state = _read(source, "backbone_init")
    layers = {key.removeprefix("features."): value for key, value in state.items()}
    layers = {key: value for key, value in layers.items() if not key.startswith(("fc.", "classifier."))}
    _load(model.backbone.body, layers, f"network.backbone_init {source}")


def _load(module: nn.Module, state: State, where: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise RecipeError(f"{where}: not weights of this network: {' '.join(lines)[:400]}") from error


def _download(weights: Any, field: str) -> State:
    try:
        state: State = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download has another hash
        raise RecipeError(
            f"network.{field}: {weights.url} cannot be downloaded ({error}). Without internet, fetch that file where "
            f"there is some and name it: --set network.{field}=/path/to/{Path(weights.url).name}"
        ) from error
    return state


def _read(path: Path, field: str) -> State:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the pickle provokes
        raise RecipeError(f"network.{field}: {path}: {error}") from error
    if isinstance(saved, Mapping) and "weights" in saved and "kind" in saved:
        return {key.removeprefix("model."): value for key, value in saved["weights"].items()}
    if isinstance(saved, Mapping) and isinstance(saved.get("model"), Mapping):
        saved = saved["model"]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise RecipeError(f"network.{field}: {path}: expected a state dict of tensors")
    return saved


def freeze_norms(module: nn.Module, eps: float | None = None) -> None:
    """Replace every BatchNorm2d by one that keeps its statistics; ``eps`` for all of them, None for their own."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps if eps is None else eps)
            tensors = child.state_dict()
            tensors.pop("num_batches_tracked")
            frozen.load_state_dict(tensors)
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps)


def train_last_layers(model: FasterRCNN, count: int) -> None:
    """Let the last ``count`` stages of the backbone learn, of 5 (ResNet) or 6 (MobileNet); the others stay fixed."""
    body = model.backbone.body
    children = list(body.named_children())
    if any(name == "layer4" for name, _ in children):
        learning = set(_RESNET_LAYERS[:count]) | ({"bn1"} if count >= len(_RESNET_LAYERS) else set())
    else:
        # A stage starts with each block that halves the picture.
        starts = [
            0,
            *(i for i, (_, block) in enumerate(children) if getattr(block, "_is_cn", False)),
            len(children) - 1,
        ]
        first = len(children) if count == 0 else starts[max(0, len(starts) - count)]
        learning = {name for name, _ in children[first:]}
    for name, child in children:
        if name not in learning:
            child.requires_grad_(False)
