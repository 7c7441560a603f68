"""Checkpoints to export: what each holds, and whether several belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from service.crops import PADDING
from service.skeletons import SKELETONS, Skeleton
from training.conventions import Convention
from training.decoding import Refinement, fused_sigma
from training.detector import DetectorRecipe
from training.networks.base import PoseNet
from training.networks.detector_base import Detector
from training.pose import PoseRecipe, load_pose_checkpoint
from training.recipe import DataSource
from training.targets import Radius


class ExportError(ValueError):
    """Something that cannot be exported; nothing was changed. The message says what and why."""


@dataclass(frozen=True)
class PoseSource:
    """Pose networks that are fused: one trunk with R heads, or R networks with one head each.

    Attributes:
        networks: the trained networks in evaluation mode, in the order of the checkpoints.
        recipes: one for each network.
        stories: each checkpoint's ``model.json``; empty where there is none.
        convention: where a heatmap's cell lies in the crop; not ours for weights that others trained.
        refinement: sub-pixel step that suits the networks.
        padding: factor on a box before it is cropped.
    """

    networks: tuple[PoseNet, ...]
    recipes: tuple[PoseRecipe, ...]
    stories: tuple[dict[str, Any], ...]
    convention: Convention = "pixel_centre"
    refinement: Refinement = "taylor"
    padding: float = PADDING

    def __post_init__(self) -> None:
        first = self.recipes[0]
        for recipe in self.recipes[1:]:
            if len(recipe.radii) != 1 or len(first.radii) != 1:
                raise ExportError("several pose checkpoints are fused only when each has one head")
            for field in ("skeleton", "width", "height", "presets"):
                if getattr(recipe, field) != getattr(first, field):
                    raise ExportError(
                        f"pose checkpoints differ in {field}: {getattr(first, field)} and {getattr(recipe, field)}"
                    )
        names = [radius.name for radius in self.radii]
        if len(set(names)) != len(names):
            raise ExportError(f"pose checkpoints have two radii of one name: {names}")

    @property
    def radii(self) -> tuple[Radius, ...]:
        """All heads, in the order of ``fusion_weights``."""
        return tuple(radius for recipe in self.recipes for radius in recipe.radii)

    @property
    def sigma(self) -> float:
        """Of the Gaussian that all heads fused with equal weights draw, in heatmap cells."""
        return fused_sigma([radius.sigma for radius in self.radii])

    @property
    def joints(self) -> Skeleton:
        """The skeleton of the heatmaps."""
        return self.recipes[0].joints

    @property
    def presets(self) -> tuple[Skeleton, ...]:
        """Skeletons to answer, the default one first."""
        return tuple(SKELETONS[name] for name in self.recipes[0].presets)

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the crops."""
        return self.recipes[0].size

    @property
    def stride(self) -> int:
        """Crop pixels for each heatmap cell."""
        return self.networks[0].stride

    @property
    def data(self) -> tuple[DataSource, ...]:
        """Data sets the networks were trained on."""
        return tuple(source for recipe in self.recipes for source in recipe.data)


@dataclass(frozen=True)
class DetectorSource:
    """A trained person detector, its recipe, and its ``model.json`` (empty where there is none)."""

    network: Detector
    recipe: DetectorRecipe
    story: dict[str, Any]

    @property
    def side(self) -> int:
        """S, the side of the letterboxed input."""
        return self.recipe.network.input_size

    @property
    def data(self) -> tuple[DataSource, ...]:
        """Data sets the network was trained on."""
        return self.recipe.train


def read_checkpoints(paths: Sequence[Path]) -> tuple[PoseSource | None, DetectorSource | None]:
    """Read ``model.pt`` files written by training.

    Returns:
        the pose networks and the detector among them; None for the kind that is not there.

    Raises:
        ExportError: a file that is no checkpoint, pose checkpoints that do not fit together, two detectors.
    """
    pose: list[tuple[PoseRecipe, PoseNet, dict[str, Any]]] = []
    manners: set[tuple[Convention, Refinement, float]] = set()
    detectors: list[DetectorSource] = []
    for path in paths:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            kind = saved["kind"]
        except Exception as error:  # torch.load raises whatever the pickle provokes
            raise ExportError(f"{path} is not a model.pt of this project: {error}") from error
        try:
            if kind == "pose":
                pose.append((*load_pose_checkpoint(path), read_story(path)))
                manners.add(_manner(saved))
            elif kind == "detector":
                recipe = DetectorRecipe.model_validate(saved["recipe"])
                network = recipe.network.build()
                network.load_state_dict(saved["weights"])
                detectors.append(DetectorSource(network.eval(), recipe, read_story(path)))
            else:
                raise ExportError(f"{path} holds a {kind!r}; only 'pose' and 'detector' can be exported")
        except (KeyError, RuntimeError, ValueError) as error:
            raise ExportError(f"{path}: {error}") from error
    if len(detectors) > 1:
        raise ExportError("one detector at a time")
    source = None
    if pose:
        recipes, networks, stories = zip(*pose, strict=True)
        if len(manners) > 1:
            raise ExportError(f"pose checkpoints differ in convention, refinement or padding: {sorted(manners)}")
        convention, refinement, padding = manners.pop()
        source = PoseSource(tuple(networks), tuple(recipes), tuple(stories), convention, refinement, padding)
    return source, detectors[0] if detectors else None


def _manner(saved: dict[str, Any]) -> tuple[Convention, Refinement, float]:
    """How a checkpoint's maps and crops are to be read; training says nothing, an import of foreign weights does."""
    convention: Convention = saved.get("convention", "pixel_centre")
    if convention not in get_args(Convention):
        raise ValueError(f"unknown convention {convention!r}; known: {', '.join(get_args(Convention))}")
    refinement: Refinement = saved.get("refinement", "taylor")
    if refinement not in get_args(Refinement):
        raise ValueError(f"unknown refinement {refinement!r}; known: {', '.join(get_args(Refinement))}")
    return convention, refinement, float(saved.get("padding", PADDING))


def read_story(checkpoint: Path) -> dict[str, Any]:
    """``model.json`` beside a ``model.pt``: how it came to be. Empty when there is none."""
    path = checkpoint.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        story = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ExportError(f"{path}: {error}") from error
    if not isinstance(story, dict):
        raise ExportError(f"{path}: expected an object, got {type(story).__name__}")
    return story
