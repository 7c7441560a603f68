"""Which models a checkpoint becomes: networks with their graphs, and the ensembles over them (DESIGN 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from export.checkpoints import DetectorSource, PoseSource
from export.configs import NETWORK_QUEUE, EnsembleStep, ModelPlan
from export.graphs import export_graph, halve_weights
from export.pose import FlipAverage, PoseFusion, PoseHeads, PoseMirror
from service.engines.base import TensorSpec
from service.skeletons import Skeleton
from training.conventions import flip_shift
from training.networks.detector_base import DetectorForExport

Precision = Literal["fp32", "fp16-weights"]
PART = {"kind": "part"}
# Examples have two rows: torch takes a batch of one for a constant.
_EXAMPLE = 2


@dataclass(frozen=True)
class PlanOptions:
    """What the caller decides.

    Attributes:
        name: of the pose ensemble of the first preset, and prefix of all others.
        detector: name of the person detector, also of the one the pose ensembles ask for.
        precision: how weights are stored; the arithmetic is float32 either way.
        score_threshold: joint score from which ``v`` is 2, unless a request says otherwise.
        box_threshold: lowest detector score that is kept, unless a request says otherwise; None for the recipe's.
        flip: whether poses are averaged with the mirrored crop, unless a request says otherwise.
        pose_batch, detector_batch: ``max_batch_size``.
    """

    name: str = "pose"
    detector: str = "person_detector"
    precision: Precision = "fp16-weights"
    score_threshold: float = 0.2
    box_threshold: float | None = None
    flip: bool = False
    pose_batch: int = 64
    detector_batch: int = 8


@dataclass(frozen=True)
class PosePlan:
    """All models of one pose export, and the names by which they are checked: preset to ensemble, and to flip."""

    models: tuple[ModelPlan, ...]
    ensembles: dict[str, str] = field(default_factory=dict)
    flips: dict[str, str] = field(default_factory=dict)


def plan_detector(source: DetectorSource, options: PlanOptions) -> ModelPlan:
    """The detector's one model."""
    side, count = source.side, source.recipe.network.proposals
    threshold = source.recipe.box_threshold if options.box_threshold is None else options.box_threshold
    images = torch.zeros(_EXAMPLE, side, side, 3, dtype=torch.uint8)
    graph = export_graph(DetectorForExport(source.network), [images], ["images"], ["boxes", "scores"])
    if options.precision == "fp16-weights":
        halve_weights(graph)
    return ModelPlan(
        name=options.detector,
        inputs=(TensorSpec("images", "uint8", (side, side, 3)),),
        outputs=(TensorSpec("boxes", "float32", (count, 4)), TensorSpec("scores", "float32", (count,))),
        max_batch=options.detector_batch,
        parameters={"kind": "detector", "input_size": str(side), "box_threshold": f"{threshold:g}"},
        graph=graph,
        queue=NETWORK_QUEUE,
    )


def plan_pose(source: PoseSource, options: PlanOptions) -> PosePlan:
    """Networks, fusion and ensembles of one pose export."""
    plan = _PoseNames(source, options)
    models = [*_heads(source, options, plan), *_flip_parts(source, options, plan)]
    ensembles, flips = {}, {}
    for index, preset in enumerate(source.presets):
        name = options.name if index == 0 else f"{options.name}_{preset.name}"
        ensembles[preset.name], flips[preset.name] = name, f"{name}_flip"
        models += _preset_models(source, options, plan, preset, name)
    return PosePlan(tuple(models), ensembles, flips)


class _PoseNames:
    """Names and shapes that several of the models share."""

    def __init__(self, source: PoseSource, options: PlanOptions) -> None:
        width, height = source.size
        self.crops = TensorSpec("crops", "uint8", (height, width, 3))
        self.map_shape = (len(source.joints), height // source.stride, width // source.stride)
        self.radii = [radius.name for radius in source.radii]
        self.weights = TensorSpec("fusion_weights", "float32", (len(self.radii),))
        self.mirror, self.average = f"{options.name}_mirror", f"{options.name}_flip_average"

    def maps(self, prefix: str = "heatmaps") -> list[str]:
        """The radius maps' tensor names, in the order of the weights."""
        return [f"{prefix}_{radius}" for radius in self.radii]

    def map_specs(self, prefix: str = "heatmaps") -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", self.map_shape) for name in self.maps(prefix))

    def examples(self) -> list[torch.Tensor]:
        return [torch.rand(_EXAMPLE, *self.map_shape) for _ in self.radii]


def _heads(source: PoseSource, options: PlanOptions, names: _PoseNames) -> list[ModelPlan]:
    """One model for each network: ``<name>_heads`` for a trunk, ``<name>_<radius>`` for separate networks."""
    models = []
    for network, recipe in zip(source.networks, source.recipes, strict=True):
        if len(source.networks) == 1:
            name, outputs = f"{options.name}_heads", names.map_specs()
        else:
            name = f"{options.name}_{recipe.radii[0].name}"
            outputs = (TensorSpec("heatmaps", "float32", names.map_shape),)
        crops = torch.zeros(_EXAMPLE, *names.crops.shape, dtype=torch.uint8)
        graph = export_graph(PoseHeads(network, recipe.radii), [crops], ["crops"], [spec.name for spec in outputs])
        if options.precision == "fp16-weights":
            halve_weights(graph)
        models.append(ModelPlan(name, (names.crops,), outputs, options.pose_batch, PART, graph, NETWORK_QUEUE))
    return models


def _flip_parts(source: PoseSource, options: PlanOptions, names: _PoseNames) -> list[ModelPlan]:
    crops = torch.zeros(_EXAMPLE, *names.crops.shape, dtype=torch.uint8)
    mirrored = TensorSpec("mirrored", names.crops.dtype, names.crops.shape)
    average = export_graph(
        FlipAverage(source.joints, flip_shift(source.convention, source.stride)),
        [names.examples(), names.examples()],
        [*names.maps(), *names.maps("mirrored")], names.maps("averaged"),
    )  # fmt: skip
    return [
        ModelPlan(
            names.mirror, (names.crops,), (mirrored,), options.pose_batch, PART,
            export_graph(PoseMirror(), [crops], ["crops"], ["mirrored"]),
        ),
        ModelPlan(
            names.average, (*names.map_specs(), *names.map_specs("mirrored")), names.map_specs("averaged"),
            options.pose_batch, PART, average,
        ),
    ]  # fmt: skip


def _preset_models(
    source: PoseSource, options: PlanOptions, names: _PoseNames, preset: Skeleton, name: str
) -> list[ModelPlan]:
    """Fusion, ensemble and flip ensemble of one skeleton."""
    fusion, flip = f"{name}_fusion", f"{name}_flip"
    keypoints = TensorSpec("keypoints", "float32", (len(preset), 3))
    examples = [names.examples(), torch.ones(_EXAMPLE, len(names.radii))]
    decoded = PoseFusion(
        source.joints, preset, source.stride, source.refinement, sigma=source.sigma, convention=source.convention
    )
    graph = export_graph(decoded, examples, [*names.maps(), "fusion_weights"], ["keypoints"])
    parameters = _pose_parameters(source, options, preset)
    network_steps = _network_steps(source, options, names, "crops", "heatmaps")
    mirrored_steps = _network_steps(source, options, names, "mirrored", "mirrored")
    flip_steps = [
        EnsembleStep(names.mirror, {"crops": "crops"}, {"mirrored": "mirrored"}),
        *network_steps,
        *mirrored_steps,
        EnsembleStep(names.average, _same([*names.maps(), *names.maps("mirrored")]), _same(names.maps("averaged"))),
        _fusion_step(fusion, names, "averaged"),
    ]
    inputs = (names.crops, names.weights)
    return [
        ModelPlan(
            fusion, (*names.map_specs(), names.weights), (keypoints,), options.pose_batch, PART, graph,
        ),
        ModelPlan(
            name, inputs, (keypoints,), options.pose_batch,
            {**parameters, "kind": "pose", "flip_model": flip, "flip": "true" if options.flip else "false"},
            steps=[*network_steps, _fusion_step(fusion, names, "heatmaps")],
        ),
        ModelPlan(
            flip, inputs, (keypoints,), options.pose_batch, {**parameters, "kind": "pose_flip"}, steps=flip_steps,
        ),
    ]  # fmt: skip


def _network_steps(
    source: PoseSource, options: PlanOptions, names: _PoseNames, crops: str, prefix: str
) -> list[EnsembleStep]:
    maps = names.maps(prefix)
    if len(source.networks) == 1:
        outputs = dict(zip(names.maps(), maps, strict=True))
        return [EnsembleStep(f"{options.name}_heads", {"crops": crops}, outputs)]
    return [
        EnsembleStep(f"{options.name}_{radius}", {"crops": crops}, {"heatmaps": tensor})
        for radius, tensor in zip(names.radii, maps, strict=True)
    ]


def _fusion_step(fusion: str, names: _PoseNames, prefix: str) -> EnsembleStep:
    maps = dict(zip(names.maps(), names.maps(prefix), strict=True))
    return EnsembleStep(fusion, {**maps, "fusion_weights": "fusion_weights"}, {"keypoints": "keypoints"})


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _pose_parameters(source: PoseSource, options: PlanOptions, preset: Skeleton) -> dict[str, str]:
    width, height = source.size
    return {
        "skeleton": preset.to_json(),
        "input_width": str(width),
        "input_height": str(height),
        "radii": ",".join(radius.name for radius in source.radii),
        "detector": options.detector,
        "padding": f"{source.padding:g}",
        "refinement": source.refinement,
        "convention": source.convention,
        "score_threshold": f"{options.score_threshold:g}",
    }
