"""A request's arrays as Triton's tensors, and its answer's tensors as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

from service.engines.base import Array, ModelMetadata, Tensors
from service.engines.tensors import fits
from service.engines.triton_memory import LEAST_BYTES, Region
from service.errors import InferenceFailed


def large_inputs(inputs: Tensors) -> Mapping[str, Array]:
    """Those that are worth a place in shared memory."""
    return {name: a for name, a in inputs.items() if a.nbytes >= LEAST_BYTES and a.dtype != np.object_}


def write_inputs(
    metadata: ModelMetadata, inputs: Tensors, shared: Mapping[str, Array], region: Region | None
) -> list[Any]:
    """The request's tensors in the config's order: those of ``shared`` copied into the region, others into messages."""
    offsets = region.write(shared) if region is not None else {}
    tensors = []
    for spec in metadata.inputs:
        array = inputs[spec.name]
        tensor = InferInput(spec.name, array.shape, np_to_triton_dtype(array.dtype))
        if region is not None and spec.name in offsets:
            tensor.set_shared_memory(region.name, array.nbytes, offsets[spec.name])
        else:
            tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def read_outputs(metadata: ModelMetadata, inputs: Tensors, result: Any) -> dict[str, Array]:
    """The arrays of an ``InferResult`` in the config's order; they are read-only views of the message.

    Raises:
        InferenceFailed: an output is missing, or not of the config's type and shape with as many rows as the inputs.
    """
    rows = len(next(iter(inputs.values()))) if metadata.max_batch_size else 0
    outputs = {}
    for spec in metadata.outputs:
        array = result.as_numpy(spec.name)
        wanted = (rows, *spec.shape) if metadata.max_batch_size else spec.shape
        if array is None or array.dtype != spec.dtype or not fits(array.shape, wanted):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise InferenceFailed(
                f"model {metadata.name!r} answered {spec.name!r} as {got}, its config says {spec.dtype} {list(wanted)}"
            )
        outputs[spec.name] = array
    return outputs
