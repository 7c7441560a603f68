"""Runs a plan on the GPU, to compare its answers before it is published. Torch holds the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from export.checkpoints import ExportError
from service.engines.base import Array, ModelMetadata, Tensors

_TYPES = {"uint8": torch.uint8, "float32": torch.float32, "int32": torch.int32, "int64": torch.int64}


class PlanRun:
    """One plan, loaded; called with inputs by name, answers outputs by name. For one thread."""

    def __init__(self, trt: Any, plan: bytes, metadata: ModelMetadata) -> None:
        """Load and check.

        Args:
            trt: the module.
            plan: as built.
            metadata: the config's; the plan's tensors must be those.

        Raises:
            ExportError: the plan does not load, or its tensors are not the config's.
        """
        self._trt, self._metadata = trt, metadata
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ExportError(f"{metadata.name}: TensorRT does not load the plan it built")
        check_tensors(trt, self._engine, metadata)
        self._context = self._engine.create_execution_context()

    def __call__(self, inputs: Tensors) -> Mapping[str, Array]:
        """Run one batch within the profile."""
        stream = torch.cuda.current_stream()
        held: dict[str, torch.Tensor] = {}
        for spec in self._metadata.inputs:
            held[spec.name] = torch.from_numpy(inputs[spec.name]).cuda().contiguous()
            if not self._context.set_input_shape(spec.name, tuple(held[spec.name].shape)):
                raise ExportError(f"{self._metadata.name}: {tuple(held[spec.name].shape)} is outside of the profile")
        rows = len(next(iter(held.values())))
        for spec in self._metadata.outputs:
            held[spec.name] = torch.empty((rows, *spec.shape), dtype=_TYPES[spec.dtype], device="cuda")
        for name, tensor in held.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"{self._metadata.name}: TensorRT cannot run the plan")
        stream.synchronize()
        return {spec.name: held[spec.name].cpu().numpy() for spec in self._metadata.outputs}


def check_tensors(trt: Any, engine: Any, metadata: ModelMetadata) -> None:
    """The plan's inputs and outputs must be those of the config: Triton refuses it otherwise. Raises ExportError."""
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wanted = {spec.name for spec in (*metadata.inputs, *metadata.outputs)}
    if names != wanted:
        raise ExportError(f"{metadata.name}: the plan has the tensors {sorted(names)}, its config {sorted(wanted)}")
    for spec in (*metadata.inputs, *metadata.outputs):
        found = str(trt.nptype(engine.get_tensor_dtype(spec.name)).__name__)
        shape = tuple(engine.get_tensor_shape(spec.name))
        fits = len(shape) == len(spec.shape) + 1 and all(
            a in (b, -1) for a, b in zip(shape[1:], spec.shape, strict=True)
        )
        if found != spec.dtype or not fits:
            raise ExportError(
                f"{metadata.name}: the plan's {spec.name!r} is {found} {list(shape)}, its config says {spec.dtype} "
                f"{[-1, *spec.shape]}"
            )
