"""``config.pbtxt`` of each model, written with Triton's own protobuf schema.

What a model is (tensors, parameters, steps) comes from its plan; how it is served (batching, queues, versions,
instances, warm-up, options of ONNX Runtime) is decided here, for exports and for ``python -m export configure`` alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from service.engines.base import TensorSpec
from service.engines.config import ENSEMBLE, ONNX
from service.engines.tensors import NUMPY_TYPES

_TYPES = {numpy: schema.DataType.Value(triton) for triton, numpy in NUMPY_TYPES.items()}
_HEADER = "# Written by `python -m export`; the next export writes it anew.\n"
# Versions of a network that are served at a time. While ensembles change over one after the other, those that still
# name the old version find it.
_SERVED = 2
# Rows that networks are warmed up with besides the most they take: one person, and what a CPU runs at a time (and
# about the people of a busy picture). With the largest batch the memory of a GPU is claimed before the first request.
_WARM_ROWS = (1, 8)
# What a TensorRT engine is tuned for, of the rows between 1 and the most that a model takes.
_TENSORRT_ROWS = 8
_TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Queue:
    """How a network is served.

    Attributes:
        delay: microseconds that the first request of a batch waits for company.
        limit: most requests waiting; more are refused at once, so that a burst cannot fill the memory.
        instances: runs of it at a time, on each GPU or on the CPU.
    """

    delay: int
    limit: int
    instances: int


# The heavy networks gain from company, and half a millisecond is little beside one run of them. A second instance
# keeps the processor or the GPU busy while the first one's tensors are copied, and where its run has serial parts.
# What follows them never waits, and has more room: a request that was paid for should not be refused on the last step.
# It runs for a millisecond, so one instance is never what others wait for.
NETWORK_QUEUE = Queue(delay=500, limit=128, instances=2)
PART_QUEUE = Queue(delay=0, limit=512, instances=1)


@dataclass(frozen=True)
class EnsembleStep:
    """One call: the model's tensor names to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelPlan:
    """A model to write: a network with its graph (``onnx.ModelProto``), or an ensemble with its steps."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    parameters: Mapping[str, str]
    graph: Any = None
    queue: Queue = PART_QUEUE
    steps: Sequence[EnsembleStep] = field(default_factory=tuple)


@dataclass(frozen=True)
class Accelerator:
    """TensorRT inside Triton's ONNX Runtime back end (the NGC container has it).

    Attributes:
        cache: folder on the server for built engines; building takes minutes, once for each GPU type and version.
        workspace: most bytes of GPU memory that a layer may use while it runs.
    """

    cache: str = "/var/cache/triton/engines"
    workspace: int = 2 * 2**30


def config_text(plan: ModelPlan) -> str:
    """The model's ``config.pbtxt``."""
    config = schema.ModelConfig(
        name=plan.name,
        platform=ENSEMBLE if plan.steps else ONNX,
        max_batch_size=plan.max_batch,
        input=[
            schema.ModelInput(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.shape) for spec in plan.inputs
        ],
        output=[
            schema.ModelOutput(name=spec.name, data_type=_TYPES[spec.dtype], dims=spec.shape) for spec in plan.outputs
        ],
    )
    for step in plan.steps:
        config.ensemble_scheduling.step.add(
            model_name=step.model, model_version=-1, input_map=dict(step.inputs), output_map=dict(step.outputs)
        )
    for key, value in sorted(plan.parameters.items()):
        config.parameters[key].string_value = value
    if not plan.steps:
        serve(config, plan.queue)
    return as_text(config)


def read_config(path: Path) -> Any:
    """A ``ModelConfig`` message. Raises ``text_format.ParseError``, OSError."""
    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def as_text(config: Any) -> str:
    """A ``ModelConfig`` message as the text of a file, parameters in the order of their names."""
    return _HEADER + text_format.MessageToString(config)


def queue_of(config: Any) -> Queue:
    """Which of the two ways a network is served, by its config: heavy networks wait for company."""
    return NETWORK_QUEUE if config.dynamic_batching.max_queue_delay_microseconds else PART_QUEUE


def serve(config: Any, queue: Queue) -> None:
    """Write how a network is served into its ``ModelConfig`` message, in place."""
    config.version_policy.latest.num_versions = _SERVED
    config.dynamic_batching.Clear()
    config.dynamic_batching.max_queue_delay_microseconds = queue.delay
    config.dynamic_batching.default_queue_policy.max_queue_size = queue.limit
    del config.instance_group[:]
    config.instance_group.add(count=queue.instances, kind=schema.ModelInstanceGroup.KIND_AUTO)
    _warm_up(config)
    if queue == NETWORK_QUEUE:
        # ONNX Runtime's own choices are to try every algorithm of cuDNN anew for each batch size, and to double its
        # memory each time it needs more.
        config.parameters["cudnn_conv_algo_search"].string_value = "1"  # heuristic
        config.parameters["arena_extend_strategy"].string_value = "1"  # as much as is asked for


def pin(config: Any, version: int, parts: Mapping[str, int]) -> None:
    """Let an ensemble be served as one version that names its parts' versions, in place.

    The one file then changes the version that callers see, parameters and parts at the same moment; until it is
    replaced, new versions of the parts have no effect on the ensemble.
    """
    config.version_policy.Clear()
    config.version_policy.specific.versions.append(version)
    for step in config.ensemble_scheduling.step:
        step.model_version = parts[step.model_name]


def accelerate(config: Any, accelerator: Accelerator) -> None:
    """Switch TensorRT on for a network, with explicit profiles, in place.

    Without profiles a new batch size would rebuild the engine for tens of seconds. The precision is the graph's own,
    as :mod:`export.accelerated` writes it: ``precision_mode`` FP16 would let TensorRT round softmax and coordinates.
    """
    rows = config.max_batch_size
    config.optimization.execution_accelerators.Clear()
    executor = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=_TENSORRT)
    for key, value in {
        "max_workspace_size_bytes": str(accelerator.workspace),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{accelerator.cache}/{config.name}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": accelerator.cache,
        "trt_profile_min_shapes": _profile(config, 1),
        "trt_profile_opt_shapes": _profile(config, min(_TENSORRT_ROWS, rows)),
        "trt_profile_max_shapes": _profile(config, rows),
    }.items():
        executor.parameters[key] = value


def is_accelerated(config: Any) -> bool:
    """Whether a network's config switches TensorRT on."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    return any(executor.name == _TENSORRT for executor in accelerators)


def limit(config: Any, *, gpu_memory: int | None = None, threads: int | None = None) -> None:
    """Bound what a network takes: bytes of GPU memory, threads on a CPU; None leaves the bound as it is."""
    for key, value in (("gpu_mem_limit", gpu_memory), ("intra_op_thread_count", threads)):
        if value is not None:
            config.parameters[key].string_value = str(value)


def carry_over(old: Any, new: Any) -> None:
    """Keep what an operator has set for a network in its next version: TensorRT and the bounds of :func:`limit`."""
    for executor in old.optimization.execution_accelerators.gpu_execution_accelerator:
        if executor.name == _TENSORRT:
            folder = executor.parameters["trt_timing_cache_path"]
            accelerate(new, Accelerator(folder, int(executor.parameters["max_workspace_size_bytes"])))
    for key in ("gpu_mem_limit", "intra_op_thread_count"):
        if key in old.parameters:
            new.parameters[key].string_value = old.parameters[key].string_value


def _profile(config: Any, rows: int) -> str:
    """``crops:8x256x192x3``, all inputs."""
    return ",".join(f"{one.name}:{'x'.join(map(str, (rows, *one.dims)))}" for one in config.input)


def _warm_up(config: Any) -> None:
    del config.model_warmup[:]
    if any(dim < 0 for one in config.input for dim in one.dims):
        return  # of what length? Triton would refuse
    for rows in _warm_rows(config.max_batch_size):
        sample = config.model_warmup.add(name=f"{rows} of zeros", batch_size=rows)
        for one in config.input:
            given = sample.inputs[one.name]
            given.data_type, given.zero_data = one.data_type, True
            given.dims.extend(one.dims)


def _warm_rows(most: int) -> Iterable[int]:
    return sorted({min(rows, most) for rows in (*_WARM_ROWS, most)})
