"""ViTPose by ``transformers``: a model's id on its hub, or a folder that ``save_pretrained`` wrote.

ViTPose was trained with UDP: the first and the last cell of a map lie on the first and the last pixel of the crop, so
that a mirrored map needs no shift. Its maps have peak 1; its code takes one Newton step on the filtered map, ``dark``.
Of the experts of a ViTPose++ checkpoint the one of COCO is kept: with it chosen, the two halves of the last layer of
each block are one layer.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from training.networks.vitpose import MISSING, ViTPoseConfig
from training.pretrained.weights import Imported, PretrainedError, Weights

# What a hub's config says about the checkpoint and not about the network.
_NO_ARCHITECTURE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
_COCO_EXPERT = 0


def vitpose(source: str) -> Imported:
    """Download or read a model.

    Args:
        source: ``usyd-community/vitpose-base-simple`` and the like, or a folder.

    Raises:
        PretrainedError: no ``transformers``, no internet, no such model, or another kind of model.
    """
    try:
        from transformers import VitPoseConfig, VitPoseForPoseEstimation
        from transformers.utils import logging
    except ImportError as error:
        raise PretrainedError(f"{source}: {MISSING}") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = VitPoseConfig.from_pretrained(source)
        model, found = VitPoseForPoseEstimation.from_pretrained(source, config=config, output_loading_info=True)
    except Exception as error:  # the hub's client and torch raise whatever they meet
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise PretrainedError(
            f"{source}: cannot be had: {lines[0] if lines else type(error).__name__}. Without internet, fetch "
            "config.json and model.safetensors of that model where there is some, put both into one folder, and name it"
        ) from error
    wrong = {kind: sorted(map(str, names)) for kind, names in found.items() if names}
    if wrong:
        raise PretrainedError(f"{source}: not whole weights of ViTPose: {json.dumps(wrong)[:600]}")
    architecture = _plain(config.to_dict())
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    _keep_expert(architecture["backbone_config"], weights)
    height, width = (int(side) for side in architecture["backbone_config"]["image_size"])
    try:
        network = ViTPoseConfig(architecture=architecture, width=width, height=height)
    except ValueError as error:
        raise PretrainedError(f"{source}: {error}") from error
    return Imported(
        layout="ViTPose as transformers names it",
        network=network,
        weights=weights,
        joints=int(config.num_labels),
        convention="udp",
        refinement="dark",
        size=(width, height),
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What JSON holds of it, less what is no part of the architecture."""
    kept: dict[str, Any] = json.loads(json.dumps(config, default=str))
    # The number of joints is the recipe's to say.
    for name in (*_NO_ARCHITECTURE, "id2label", "label2id", "num_labels"):
        kept.pop(name, None)
        kept["backbone_config"].pop(name, None)
    return kept


def _keep_expert(backbone: dict[str, Any], weights: Weights) -> None:
    """Join the shared and COCO's part of every block's last layer, and drop the other experts; in place."""
    if backbone.get("num_experts", 1) == 1:
        return
    for name in [n for n in weights if ".mlp.fc2." in n]:
        experts = name.replace(".mlp.fc2.", f".mlp.experts.{_COCO_EXPERT}.")
        weights[name] = torch.cat([weights[name], weights[experts]])
    for name in [n for n in weights if ".mlp.experts." in n]:
        del weights[name]
    backbone["num_experts"] = 1
