"""``config.pbtxt`` of each model, written with Triton's own protobuf schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from service.engines.base import TensorSpec
from service.engines.config import ENSEMBLE, ONNX
from service.engines.tensors import NUMPY_TYPES

_TYPES = {numpy: schema.DataType.Value(triton) for triton, numpy in NUMPY_TYPES.items()}
_HEADER = "# Written by `python -m export`; the next export writes it anew.\n"
# Versions that Triton serves at a time: the new one, and the one before for callers that pin it.
_SERVED = 2


@dataclass(frozen=True)
class Queue:
    """A network's dynamic batching.

    Attributes:
        delay: microseconds that the first request of a batch waits for company.
        limit: most requests waiting; more are refused at once, so that a burst cannot fill the memory.
    """

    delay: int
    limit: int


# The heavy networks gain from company, and half a millisecond is little beside one run of them. What follows them
# never waits, and has more room: a request that was paid for should not be refused on the last step.
NETWORK_QUEUE = Queue(delay=500, limit=128)
PART_QUEUE = Queue(delay=0, limit=512)


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
    config.version_policy.latest.num_versions = _SERVED
    for step in plan.steps:
        config.ensemble_scheduling.step.add(
            model_name=step.model, model_version=-1, input_map=dict(step.inputs), output_map=dict(step.outputs)
        )
    if not plan.steps:
        config.dynamic_batching.max_queue_delay_microseconds = plan.queue.delay
        config.dynamic_batching.default_queue_policy.max_queue_size = plan.queue.limit
    for key, value in sorted(plan.parameters.items()):
        config.parameters[key].string_value = value
    text = text_format.MessageToString(config)
    return _HEADER + text
