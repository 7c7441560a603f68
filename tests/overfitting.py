"""Sixteen people and tiny networks trained on nothing else: what a network can learn at all, in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from service.scenes import render_scene, write_coco
from tests.training.test_networks import TINY
from training.pose import train_pose

PEOPLE = 16
# Nose, eyes and ears: the first joints of coco17.
_FACE = 5
RADII = [{"name": "large", "kind": "softmax", "sigma": 2.0}, {"name": "small", "kind": "softmax", "sigma": 1.0}]
STILL = dict.fromkeys(
    ("rotation", "rotation_probability", "scale", "shift", "flip", "half_body", "colour", "grey", "blur", "erase"), 0.0
)
# Where the tiny form of the registry's test is too small for sixteen people or too slow to learn them.
LEARNS: dict[str, dict[str, Any]] = {"simple_baseline": {"width": 16, "deconv_channels": 32}}


@dataclass(frozen=True)
class Sixteen:
    """COCO annotations of sixteen people, one in a picture, and the folder of their pictures."""

    annotations: Path
    images: Path

    def people(self) -> list[tuple[Path, list[float]]]:
        """Picture and COCO box x y w h of each."""
        data = json.loads(self.annotations.read_text())
        names = {image["id"]: image["file_name"] for image in data["images"]}
        return [(self.images / names[person["image_id"]], person["bbox"]) for person in data["annotations"]]


def sixteen(folder: Path, photographs: Path | None) -> Sixteen:
    """From the photographs of sports where they are, else from rendered scenes."""
    if photographs is None:
        source = write_coco((render_scene(seed, people=1, size=(320, 240)) for seed in range(PEOPLE)), folder)
        images = folder / "images"
    else:
        source, images = photographs / "lsp_train.json", photographs / "lsp_train"
    data = json.loads(source.read_text())
    whole = [person for person in data["annotations"] if person["num_keypoints"] >= 12]
    chosen = [whole[index] for index in np.linspace(0, len(whole) - 1, PEOPLE).astype(int)]
    shown = {person["image_id"] for person in chosen}
    if photographs is None:
        # As in those photographs, limbs only: a face of 6 pixels is no question of learning by heart.
        for person in chosen:
            person["keypoints"][: 3 * _FACE] = [0] * (3 * _FACE)
            person["num_keypoints"] = sum(visibility > 0 for visibility in person["keypoints"][2::3])
    data["annotations"] = chosen
    data["images"] = [image for image in data["images"] if image["id"] in shown]
    path = folder / "sixteen.json"
    path.write_text(json.dumps(data))
    return Sixteen(path, images)


def overfit(name: str, data: Sixteen, folder: Path, **changes: Any) -> Path:
    """Train a tiny network of that name by the public command's function; the path of its ``model.pt``."""
    folder.mkdir(parents=True)
    recipe = {
        "data": [{"annotations": str(data.annotations), "images": str(data.images)}],
        "network": {"name": name, **TINY[name], **LEARNS.get(name, {})},
        "width": 64, "height": 96, "skeleton": "union19", "presets": ["lsp14"], "radii": RADII,
        "augmentation": STILL, "min_joints": 1, "holdout": 0, "batch": PEOPLE, "ema": 0, "precision": "32-true",
        "steps": 250, "learning_rate": 4e-3, "warmup": 20, "weight_decay": 0, "save_every": 1000,
        **changes,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return train_pose(path, folder / "run")
