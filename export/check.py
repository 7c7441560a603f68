"""``python -m export check-repository``: everything that is wrong with a model repository, without serving it.

The checks are those of the readers: the embedded engine's of configs, graphs and ensembles, the gateway's of
parameters. Here they go on after the first fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.accelerated import is_accelerated_graph
from export.configs import is_accelerated, read_config
from export.repository import CARD, CONFIG, KEEP_FILE, version_numbers
from service.engines.base import ModelMetadata, TensorSpec
from service.engines.config import ENSEMBLE, ModelConfig, RepositoryError, read_model
from service.engines.ensembles import check_ensembles
from service.engines.sessions import OnnxModel, RuntimeSettings
from service.errors import ModelNotFound
from service.presets import DEFAULTS, PARAMETERS, detector_preset, pose_preset, read_parameter

_SETTINGS = RuntimeSettings(providers=("CPUExecutionProvider",))


@dataclass
class Finding:
    """Something that is wrong: the model's name (empty for the repository) and what it is."""

    model: str
    fault: str


@dataclass
class Checked:
    """What a check found.

    Attributes:
        models: the configs that could be read.
        findings: all faults, in the order of the models.
        notes: what is no fault but may not be meant.
    """

    models: dict[str, ModelConfig] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


def check_repository(root: Path) -> Checked:
    """Check everything; nothing is raised for what is wrong with the repository."""
    checked = Checked()
    if not root.is_dir():
        checked.findings.append(Finding("", f"{root} is not a folder"))
        return checked
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        checked.findings.append(Finding("", f"{root} holds no model"))
    for folder in folders:
        for fault in _check_folder(folder, checked.models):
            checked.findings.append(Finding(folder.name, fault))
    # What an unreadable model's ensembles look like is not known: only that one is told.
    unread = {folder.name for folder in folders} - set(checked.models)
    whole = {
        name: config
        for name, config in checked.models.items()
        if not any(step.model in unread for step in config.steps)
    }
    check_ensembles(whole, lambda fault: checked.findings.append(Finding(_model_of(root, fault), fault)))
    for name, config in whole.items():
        checked.findings += [Finding(name, fault) for fault in _check_parameters(config.metadata, checked.models)]
        checked.notes += [Finding(name, note) for note in _older_parts(config, checked.models)]
    if not any(config.metadata.parameters.get("kind") == "pose" for config in checked.models.values()):
        checked.notes.append(Finding("", "no model is a pose model (parameter kind = pose): the service has no use"))
    return checked


def _model_of(root: Path, fault: str) -> str:
    """The model that a fault names: every one begins with the config's path."""
    return fault.removeprefix(f"{root}/").partition("/")[0]


def _check_folder(folder: Path, models: dict[str, ModelConfig]) -> Iterator[str]:
    """One model alone: its files, its config, its graphs."""
    if not (folder / CONFIG).is_file():
        yield f"{folder} has no {CONFIG}"
        return
    faults: list[str] = []
    try:
        config = read_model(folder, faults.append, plans=True)
    except RepositoryError as error:
        yield from (*faults, str(error))
        yield from _stray_files(folder, None)
        return
    models[folder.name] = config
    yield from faults
    yield from _stray_files(folder, config)
    if config.onnx is not None and not faults:
        for version in config.metadata.versions:
            yield from _check_network(config, version)
        yield from _check_acceleration(config)


def _stray_files(folder: Path, config: ModelConfig | None) -> Iterator[str]:
    """Files that no server reads: a version in a folder of the wrong name, a graph in the wrong place."""
    versions = {str(number) for number in version_numbers(folder)}
    for path in sorted(folder.iterdir()):
        if path.name in (CONFIG, CARD, "warmup") or path.name.startswith("."):
            continue
        if path.name not in versions or not path.is_dir():
            yield f"{path} is neither a version folder (1, 2, ...) nor {CONFIG} or {CARD}"
        elif config is None:
            continue
        elif is_ensemble(config):
            yield from (f"{one} has no use in an ensemble's version" for one in _files(path))
        elif not _files(path):
            yield f"{path} is empty"
        elif config.onnx is not None:
            # Weights that are stored beside a graph are its own business, named after it or not.
            graphs = [one for one in _files(path) if one.suffix == ".onnx" and one.name != config.onnx.name]
            yield from (f"{one} is not read: the graph is {config.onnx.name}" for one in graphs)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != KEEP_FILE)


def _check_network(config: ModelConfig, version: int) -> Iterator[str]:
    """Load a graph (its IR version and operators are what this ONNX Runtime takes), compare, run its warm-up."""
    faults: list[str] = []
    try:
        model = OnnxModel(config.at_version(version), _SETTINGS, faults.append)
        if not faults:
            model.warm_up()
    except RepositoryError as error:
        faults.append(str(error))
    yield from faults


def _check_acceleration(config: ModelConfig) -> Iterator[str]:
    """TensorRT inside ONNX Runtime needs graphs of its own, which a version that was put there by hand has not."""
    if not is_accelerated(read_config(config.source)):
        return
    for version in config.metadata.versions:
        graph = config.at_version(version).onnx
        if graph is not None and not is_accelerated_graph(graph):
            yield (
                f"{graph} is not written for TensorRT, which may serve it with another version's engine or not at "
                "all: publish it with `python -m export`"
            )


def _older_parts(config: ModelConfig, models: Mapping[str, ModelConfig]) -> Iterator[str]:
    for number, step in enumerate(config.steps, 1):
        part = models.get(step.model)
        if part is not None and step.version not in (-1, part.version):
            yield (
                f"step {number} names version {step.version} of {step.model!r}, the newest is {part.version}: "
                "`python -m export configure` takes it into use"
            )


def _check_parameters(metadata: ModelMetadata, models: Mapping[str, ModelConfig]) -> Iterator[str]:
    """What the gateway needs to know of a model, and whether its tensors are that."""
    kind = metadata.parameters.get("kind", "part")
    if kind not in ("part", "pose", "pose_flip", "detector"):
        yield f"parameter kind = {kind!r} is none of part, pose, pose_flip, detector"
    needed = (*PARAMETERS.get(kind, {}), *DEFAULTS.get(kind, {}))
    unread = 0
    for name in needed:
        try:
            read_parameter(metadata, kind, name)
        except ModelNotFound as error:
            unread += 1
            yield error.detail
    if not unread and kind == "pose":
        yield from _check_pose(metadata, models)
    if not unread and kind == "detector":
        side = detector_preset(metadata).side
        yield from _check_tensors(
            metadata, [TensorSpec("images", "uint8", (side, side, 3))],
            [TensorSpec("boxes", "float32", (-1, 4)), TensorSpec("scores", "float32", (-1,))],
        )  # fmt: skip


def _check_pose(metadata: ModelMetadata, models: Mapping[str, ModelConfig]) -> Iterator[str]:
    preset = pose_preset(metadata)
    width, height = preset.size
    crops = TensorSpec("crops", "uint8", (height, width, 3))
    weights = TensorSpec("fusion_weights", "float32", (len(preset.radii),))
    yield from _check_tensors(
        metadata, [crops, weights], [TensorSpec("keypoints", "float32", (len(preset.skeleton), 3))]
    )
    for role, name, kind in (("detector", preset.detector, "detector"), ("flip_model", preset.flip_model, "pose_flip")):
        if name is None:
            continue
        other = models.get(name)
        if other is None:
            yield f"parameter {role} names {name!r}, which is not in the repository"
        elif other.metadata.parameters.get("kind") != kind:
            yield f"parameter {role} names {name!r}, whose kind is not {kind}"
        elif role == "flip_model" and _signature(other.metadata) != _signature(metadata):
            yield f"parameter {role} names {name!r}, whose tensors are not those of {metadata.name!r}"


def _signature(metadata: ModelMetadata) -> object:
    return metadata.inputs, metadata.outputs


def _check_tensors(metadata: ModelMetadata, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Iterator[str]:
    """The contract of the gateway with a kind of model; -1 is any length."""
    if metadata.max_batch_size < 1:
        yield f"max_batch_size is {metadata.max_batch_size}: the service sends batches"
    for role, wanted, given in (("input", inputs, metadata.inputs), ("output", outputs, metadata.outputs)):
        have = {spec.name: spec for spec in given}
        for spec in wanted:
            one = have.pop(spec.name, None)
            if one is None:
                yield f"there is no {role} {spec.name!r}"
            elif one.dtype != spec.dtype or not _alike(one.shape, spec.shape):
                yield (
                    f"{role} {spec.name!r} is {one.dtype} {list(one.shape)}; by the parameters it must be "
                    f"{spec.dtype} {list(spec.shape)}"
                )
        if role == "input" and have:
            yield f"the service does not send the inputs {sorted(have)}"


def _alike(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, s) or s == -1 for s, w in zip(shape, wanted, strict=True))


def is_ensemble(config: ModelConfig) -> bool:
    """For summaries."""
    return config.metadata.platform == ENSEMBLE
