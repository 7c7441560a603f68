"""Reads a Triton model repository: what every ``<name>/config.pbtxt`` says, checked against the files.

The text is parsed with Triton's own protobuf schema, so a config that this module accepts is one that Triton
can read. What the embedded engine does not implement (sequence batching, ragged batches, reshape, optional
inputs) is refused by name and never silently ignored; what only tunes Triton (priority levels, preferred batch
sizes, response cache, accelerators, rate limits) is read over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from service.engines.base import ModelMetadata, TensorSpec
from service.engines.tensors import NUMPY_TYPES, fits

ENSEMBLE = "ensemble"
ONNX = "onnxruntime_onnx"
# Of TensorRT: only Triton runs it, and here its config is all that can be read.
PLAN = "tensorrt_plan"
# Of each, pairs of platform and back end.
_SPELLINGS = {
    ONNX: ((ONNX, ""), ("", "onnxruntime"), (ONNX, "onnxruntime")),
    PLAN: ((PLAN, ""), ("", "tensorrt"), (PLAN, "tensorrt")),
}


class RepositoryError(ValueError):
    """The repository cannot be served; the message names the file and the offending value."""


# Takes a fault's message. The default ends the reading with the first; `export check-repository` collects them all.
Report = Callable[[str], None]


def refuse(fault: str) -> NoReturn:
    """The report of whoever wants to serve. Raises RepositoryError."""
    raise RepositoryError(fault)


@dataclass(frozen=True)
class BatchPolicy:
    """How requests to one model are queued and joined.

    Attributes:
        max_rows: most rows in one run; 0 for a model without a batch axis.
        joins: whether waiting requests are joined into one run (a ``dynamic_batching`` block is there).
        delay: seconds the first request of a batch waits for company; 0 joins only what waits already.
        max_queue: most requests waiting; 0 for no bound.
        queue_timeout: seconds a request may wait before it is refused; 0 for no limit.
        instances: most runs of this model at a time; 0 for as many as the engine has workers.
        at_once: a worker that asks for this model runs it itself, there and then: it takes no longer than waking
            another one, and its inputs are in that core's caches.
    """

    max_rows: int = 0
    joins: bool = False
    delay: float = 0.0
    max_queue: int = 0
    queue_timeout: float = 0.0
    instances: int = 0
    at_once: bool = False


@dataclass(frozen=True)
class Step:
    """One model call of an ensemble: the step model's tensor names to the ensemble's."""

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class WarmUp:
    """One run before a model answers (``model_warmup``).

    Attributes:
        name: the sample's, for messages.
        rows: its ``batch_size``; 0 for a model without a batch axis.
        shapes: each input's shape without the batch axis, all axes known.
        random: names of the inputs that get random numbers; the others get zeros.
    """

    name: str
    rows: int
    shapes: Mapping[str, tuple[int, ...]]
    random: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelConfig:
    """One model of the repository, ready to load.

    Attributes:
        source: the config.pbtxt, for messages.
        metadata: what callers see; ``versions`` are those the version policy selects, ascending.
        version: the one that answers, the highest selected.
        onnx: the network's file; None for an ensemble and for a plan.
        batching: queue and joining.
        steps: an ensemble's calls; empty for a network.
        cpu_only: an instance group asks for the CPU.
        graph_level: ``optimization.graph.level`` as Triton's ONNX Runtime back end reads it; None when unset.
        warm_up: runs before the model answers; empty where the config names none.
    """

    source: Path
    metadata: ModelMetadata
    version: int
    onnx: Path | None
    batching: BatchPolicy
    steps: tuple[Step, ...]
    cpu_only: bool = False
    graph_level: int | None = None
    warm_up: tuple[WarmUp, ...] = ()

    def at_version(self, version: int) -> ModelConfig:
        """The same model with another of its versions to answer; -1 for the latest. Raises RepositoryError."""
        if version in (-1, self.version):
            return self
        if version not in self.metadata.versions:
            raise RepositoryError(f"{self.source}: version {version} is not served, {self.metadata.versions} are")
        onnx = self.onnx and _network_file(self.source, version, self.onnx.name)
        return replace(self, version=version, onnx=onnx)


def read_repository(root: Path) -> dict[str, ModelConfig]:
    """All models under ``root`` by name. Ensembles are not yet checked against their parts.

    Raises:
        RepositoryError: no such folder, no model in it, or a config that cannot be served.
    """
    if not root.is_dir():
        raise RepositoryError(f"model repository {root} is not a folder")
    models = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (folder / "config.pbtxt").is_file():
            models[folder.name] = read_model(folder)
        elif _version_folders(folder):
            raise RepositoryError(f"{folder} has versions but no config.pbtxt")
    if not models:
        raise RepositoryError(f"model repository {root} holds no <name>/config.pbtxt")
    return models


def read_model(folder: Path, report: Report = refuse, *, plans: bool = False) -> ModelConfig:
    """The model of one folder.

    Args:
        folder: with ``config.pbtxt`` and version folders.
        report: gets each fault that does not keep the rest from being read.
        plans: whether TensorRT's plans are read as well, which no engine of this service runs itself.

    Raises:
        RepositoryError: the config cannot be read, or there is no version or no platform to serve.
    """
    source = folder / "config.pbtxt"
    config = schema.ModelConfig()
    try:
        text_format.Parse(source.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{source}: {error}") from error
    if config.name not in ("", folder.name):
        report(f"{source}: name {config.name!r} must be the folder's, {folder.name!r}")
    if config.max_batch_size < 0:
        report(f"{source}: max_batch_size {config.max_batch_size} is negative")
    _check_supported(source, config, report)
    platform = _platform(source, config, (ONNX, PLAN) if plans else (ONNX,))
    versions = _select_versions(source, folder, config)
    metadata = read_metadata(source, config, folder.name, versions, platform, report)
    onnx = None
    if platform == ONNX:
        onnx = _network_file(source, versions[-1], config.default_model_filename or "model.onnx")
    elif platform == PLAN:
        for version in versions:
            _network_file(source, version, config.default_model_filename or "model.plan")
    return ModelConfig(
        source=source,
        metadata=metadata,
        version=versions[-1],
        onnx=onnx,
        batching=_batch_policy(config),
        steps=tuple(
            Step(step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
            for step in config.ensemble_scheduling.step
        ),
        cpu_only=any(group.kind == schema.ModelInstanceGroup.KIND_CPU for group in config.instance_group),
        graph_level=config.optimization.graph.level if config.optimization.HasField("graph") else None,
        warm_up=tuple(_warm_up(source, sample, metadata, report) for sample in config.model_warmup),
    )


def _network_file(source: Path, version: int, name: str) -> Path:
    path = source.parent / str(version) / name
    if not path.is_file():
        raise RepositoryError(f"{source}: {path} is missing")
    return path


def _warm_up(source: Path, sample: Any, metadata: ModelMetadata, report: Report) -> WarmUp:
    """One ``model_warmup`` entry, which Triton would refuse at load time for the same reasons."""
    where = f"{source}: model_warmup {sample.name!r}"
    declared = {spec.name: spec for spec in metadata.inputs}
    if set(sample.inputs) != set(declared):
        report(f"{where} has the inputs {sorted(sample.inputs)}, the model takes {sorted(declared)}")
    if metadata.max_batch_size and not 1 <= sample.batch_size <= metadata.max_batch_size:
        report(f"{where} has batch_size {sample.batch_size}, the most is {metadata.max_batch_size}")
    for name, given in sample.inputs.items():
        spec, type_name = declared.get(name), schema.DataType.Name(given.data_type)
        if spec is None:
            continue
        dims = tuple(given.dims)
        if NUMPY_TYPES.get(type_name) != spec.dtype or not fits(dims, spec.shape) or min(dims, default=1) < 1:
            report(
                f"{where}: input {name!r} is {type_name} {list(dims)}, the model takes {spec.dtype} {list(spec.shape)}"
            )
    return WarmUp(
        name=sample.name,
        rows=sample.batch_size if metadata.max_batch_size else 0,
        shapes={name: tuple(given.dims) for name, given in sample.inputs.items()},
        random=frozenset(name for name, given in sample.inputs.items() if given.random_data),
    )


def read_metadata(
    source: Path | str, config: Any, name: str, versions: tuple[int, ...], platform: str, report: Report = refuse
) -> ModelMetadata:
    """What callers see of a ``ModelConfig`` message; ``source`` is where it came from, for messages.

    Raises:
        RepositoryError: a tensor without a name, or of a type or shape that NumPy has not.
    """
    return ModelMetadata(
        name=name,
        versions=versions,
        platform=platform,
        max_batch_size=config.max_batch_size,
        inputs=_tensors(source, "input", config.input, report),
        outputs=_tensors(source, "output", config.output, report),
        parameters={key: value.string_value for key, value in sorted(config.parameters.items())},
    )


def _platform(source: Path, config: Any, networks: tuple[str, ...]) -> str:
    """``ensemble`` or one of ``networks``; ``backend: "onnxruntime"`` is the newer spelling of ``onnxruntime_onnx``."""
    if config.platform == ENSEMBLE:
        if not config.ensemble_scheduling.step:
            raise RepositoryError(f'{source}: platform "ensemble" needs ensemble_scheduling with at least one step')
        return ENSEMBLE
    platform = next((p for p in networks if (config.platform, config.backend) in _SPELLINGS[p]), None)
    if platform is None:
        raise RepositoryError(
            f"{source}: platform {config.platform!r}, backend {config.backend!r} cannot be served;"
            f' use platform "{ONNX}" or "{ENSEMBLE}", or backend "onnxruntime"'
        )
    if config.HasField("ensemble_scheduling"):
        raise RepositoryError(f'{source}: ensemble_scheduling needs platform "ensemble", not {config.platform!r}')
    return platform


def _check_supported(source: Path, config: Any, report: Report) -> None:
    for name in ("sequence_batching", "batch_input", "batch_output"):
        if config.HasField(name) if name == "sequence_batching" else getattr(config, name):
            report(f"{source}: {name} is not supported by the embedded engine")
    for tensor in (*config.input, *config.output):
        for name in ("reshape", "optional", "allow_ragged_batch", "is_shape_tensor", "is_non_linear_format_io"):
            field = type(tensor).DESCRIPTOR.fields_by_name.get(name)
            if field is None:
                continue
            if tensor.HasField(name) if field.message_type else getattr(tensor, name):
                report(f"{source}: {name} of {tensor.name!r} is not supported by the embedded engine")


def _tensors(source: Path | str, kind: str, tensors: Any, report: Report) -> tuple[TensorSpec, ...]:
    if not tensors:
        report(f"{source}: no {kind} is declared")
    specs: list[TensorSpec] = []
    for tensor in tensors:
        type_name = schema.DataType.Name(tensor.data_type)
        if not tensor.name or any(tensor.name == spec.name for spec in specs):
            report(f"{source}: {kind} name {tensor.name!r} is empty or given twice")
        if type_name not in NUMPY_TYPES:
            report(f"{source}: {kind} {tensor.name!r} has data_type {type_name}")
            continue
        if any(dim < -1 or dim == 0 for dim in tensor.dims):
            report(f"{source}: {kind} {tensor.name!r} has dims {list(tensor.dims)}")
        specs.append(TensorSpec(tensor.name, NUMPY_TYPES[type_name], tuple(tensor.dims)))
    return tuple(specs)


def _version_folders(folder: Path) -> list[int]:
    """Ascending numbers of the version folders; like Triton, names that are no positive number are passed over."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")


def _select_versions(source: Path, folder: Path, config: Any) -> tuple[int, ...]:
    """What the version policy selects (default: the latest one) of the folders that exist, ascending."""
    found = _version_folders(folder)
    if not found:
        raise RepositoryError(f"{source}: no version folder (such as {folder / '1'}) is there")
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return tuple(found)
    if choice == "specific":
        wanted = list(config.version_policy.specific.versions)
        missing = sorted(set(wanted) - set(found))
        if missing or not wanted:
            raise RepositoryError(f"{source}: version_policy asks for versions {wanted}, there are {found}")
        return tuple(sorted(set(wanted)))
    return tuple(found[-max(1, config.version_policy.latest.num_versions) :])


def _batch_policy(config: Any) -> BatchPolicy:
    queue = config.dynamic_batching.default_queue_policy
    reject = schema.ModelQueuePolicy.TimeoutAction.Value("REJECT")
    return BatchPolicy(
        max_rows=config.max_batch_size,
        joins=config.HasField("dynamic_batching") and config.max_batch_size > 1,
        delay=config.dynamic_batching.max_queue_delay_microseconds / 1e6,
        max_queue=queue.max_queue_size,
        queue_timeout=queue.default_timeout_microseconds / 1e6 if queue.timeout_action == reject else 0.0,
        instances=sum(max(1, group.count) for group in config.instance_group),
    )
