"""Do a request's tensors fit the model? The checks every engine makes before it runs or sends anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from service.engines.base import Array, ModelMetadata, Tensors, TensorSpec

# Triton's data types and NumPy's names for them. BF16 is left out: NumPy has no such type.
NUMPY_TYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_UINT16": "uint16",
    "TYPE_UINT32": "uint32",
    "TYPE_UINT64": "uint64",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_STRING": "object",
}
_DTYPES = {name: np.dtype(name) for name in NUMPY_TYPES.values()}


def check_inputs(model: ModelMetadata, inputs: Tensors) -> int:
    """Number of rows N of a request.

    Args:
        model: what the tensors have to fit.
        inputs: by name; [N, ...] for a model with a batch axis, the config's shape for one without.

    Returns:
        N; 1 for a model without a batch axis.

    Raises:
        ValueError: a missing or unknown name, a dtype, shape or N that differs; the message has them all.
    """
    batched = model.max_batch_size > 0
    rows = -1
    for spec in model.inputs:
        array = inputs.get(spec.name)
        if array is None or len(inputs) != len(model.inputs):
            names = sorted(spec.name for spec in model.inputs)
            raise ValueError(f"model {model.name!r} takes the inputs {names}, got {sorted(inputs)}")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{_where(model, spec)} must be a NumPy array, got {type(array).__name__}")
        if array.dtype != _DTYPES[spec.dtype]:
            raise ValueError(f"{_where(model, spec)} must be {spec.dtype}, got {array.dtype}")
        if batched and rows < 0 and array.ndim:
            rows = array.shape[0]
        wanted = (rows, *spec.shape) if batched else spec.shape
        if not fits(array.shape, wanted):
            raise ValueError(
                f"{_where(model, spec)} must have shape {list(wanted)}{' (rows first)' if batched else ''}, "
                f"got {list(array.shape)}"
            )
    return rows if batched else 1


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a shape has the wanted rank and axes; -1 in ``wanted`` takes any length."""
    return shape == wanted or (
        len(shape) == len(wanted) and all(want in (-1, got) for want, got in zip(wanted, shape, strict=True))
    )


def empty_outputs(model: ModelMetadata) -> dict[str, Array]:
    """What N = 0 rows give: every output as [0, ...]; an axis of unknown length becomes 0 too."""
    return {
        spec.name: np.empty((0, *(max(d, 0) for d in spec.shape)), dtype=np.dtype(spec.dtype)) for spec in model.outputs
    }


def split_rows(inputs: Tensors, rows: int, limit: int) -> list[dict[str, Array]]:
    """Cut a request along the batch axis into the fewest parts of at most ``limit`` rows, as even as can be.

    Even parts (5 + 4, not 8 + 1) keep two workers equally busy. The parts are views, nothing is copied.
    """
    parts = -(-rows // limit)
    bounds = [rows * part // parts for part in range(parts + 1)]
    return [{name: array[first:last] for name, array in inputs.items()} for first, last in pairwise(bounds)]


def join_rows(parts: Sequence[Tensors]) -> dict[str, Array]:
    """Inverse of :func:`split_rows`; a single part is passed through without a copy."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _where(model: ModelMetadata, spec: TensorSpec) -> str:
    return f"input {spec.name!r} of model {model.name!r}"
