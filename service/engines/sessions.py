"""One ONNX Runtime session for each network of the repository, checked against its config.pbtxt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service.engines.base import Array, Tensors, TensorSpec
from service.engines.config import ModelConfig, RepositoryError
from service.engines.tensors import fits

_ONNX_TYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
}
# Triton's ONNX Runtime back end gives optimization.graph.level these meanings; everything else is "all".
_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL_ONLY = 4  # errors come back as exceptions and are logged once


@dataclass(frozen=True)
class RuntimeSettings:
    """How much of the machine inference may use.

    The defaults were measured on 2 cores with the slim pose network: two threads
    cost 10 % more CPU time than one and halve the latency; spinning threads cost three times the CPU time as soon as
    anything else runs on the cores, be it this process's own decoding of pictures.

    Attributes:
        intra_op_threads: threads inside one run; 0 for the cores this process may use.
        concurrent_runs: runs at a time over all models. Two keep the cores busy where one run has serial parts, and
            while an answer is on its way back.
        spinning: idle ONNX Runtime threads spin for their next task instead of sleeping.
        cpu_rows: most rows in one run on a CPU, below the config's ``max_batch_size``; 0 for no such bound. On a CPU
            larger batches gain nothing (16.6 ms of CPU time for a crop at 8 rows, 16.5 ms at 64) and ONNX Runtime
            keeps their memory for ever (40 MB at 8 rows, 330 MB at 64).
        providers: ONNX Runtime execution providers in order of preference; empty for CUDA where the installed
            ONNX Runtime has it, then CPU.
        warm_up: run every network once with zeros on start, so that a network that cannot run is found before
            the first request, and the first request does not pay for it.
        drain_seconds: how long ``close`` waits for requests in flight.
    """

    intra_op_threads: int = 0
    concurrent_runs: int = 2
    spinning: bool = False
    cpu_rows: int = 8
    providers: tuple[str, ...] = ()
    warm_up: bool = True
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if min(self.intra_op_threads, self.cpu_rows) < 0 or self.concurrent_runs < 1 or not self.drain_seconds >= 0:
            raise ValueError(f"runtime settings out of range: {self}")


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its container (ONNX Runtime ignores the latter)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2: no quota to know of
        pass
    return cores


def chosen_providers(settings: RuntimeSettings) -> tuple[str, ...]:
    """Execution providers to ask for, in order of preference. Raises RepositoryError for one that is not there."""
    available = onnxruntime.get_available_providers()
    if not settings.providers:
        return tuple(p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available)
    missing = [provider for provider in settings.providers if provider not in available]
    if missing:
        raise RepositoryError(f"execution providers {missing} are not available, there are {available}")
    return settings.providers


class OnnxModel:
    """A loaded network. ``run`` may be called from several threads at a time; ``batching`` is how to queue for it."""

    def __init__(self, config: ModelConfig, settings: RuntimeSettings) -> None:
        """Load and check. Raises RepositoryError when the file cannot be loaded or does not fit its config."""
        self.config = config
        providers = ("CPUExecutionProvider",) if config.cpu_only else chosen_providers(settings)
        # The default search tries every cuDNN algorithm anew for each batch size; the heuristic does not.
        provider_options = [
            {"cudnn_conv_algo_search": "HEURISTIC"} if provider == "CUDAExecutionProvider" else {}
            for provider in providers
        ]
        options = session_options(config, settings)
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(config.onnx),
                sess_options=options,
                providers=list(providers),
                provider_options=provider_options,
            )
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise RepositoryError(f"{config.onnx}: ONNX Runtime cannot load it: {error}") from error
        self.providers: tuple[str, ...] = tuple(self.session.get_providers())
        self.batching = config.batching
        if settings.cpu_rows and self.providers == ("CPUExecutionProvider",):
            rows = min(config.batching.max_rows, settings.cpu_rows)
            self.batching = replace(config.batching, max_rows=rows, joins=config.batching.joins and rows > 1)
        self._outputs = [spec.name for spec in config.metadata.outputs]
        _check_signature(config, self.session.get_inputs(), self.session.get_outputs())

    def run(self, inputs: Tensors, options: onnxruntime.RunOptions | None = None) -> dict[str, Array]:
        """Run one batch in the calling thread, without the GIL.

        Args:
            inputs: every input by name, within the config's shapes; contiguous ones are not copied.
            options: set ``terminate`` on them to end the run early.
        """
        return dict(zip(self._outputs, self.session.run(self._outputs, inputs, options), strict=True))

    def warm_up(self) -> None:
        """Run on one row of zeros and check the answer's shapes. Networks with axes of free length are left out.

        Raises:
            RepositoryError: the network fails, or its outputs are not what its config says.
        """
        metadata = self.config.metadata
        if any(dim < 0 or spec.dtype == "object" for spec in metadata.inputs for dim in spec.shape):
            return
        rows = (1,) if metadata.max_batch_size else ()
        try:
            outputs = self.run({s.name: np.zeros(rows + s.shape, np.dtype(s.dtype)) for s in metadata.inputs})
        except Exception as error:
            raise RepositoryError(f"{self.config.onnx}: it does not run on zeros: {error}") from error
        for spec in metadata.outputs:
            if not fits(outputs[spec.name].shape, rows + spec.shape):
                raise RepositoryError(
                    f"{self.config.source}: output {spec.name!r} has dims {list(spec.shape)}, but the network gives "
                    f"{list(outputs[spec.name].shape[len(rows) :])}"
                )


def session_options(config: ModelConfig, settings: RuntimeSettings) -> onnxruntime.SessionOptions:
    """The engine's settings, overridden by the model's ``parameters`` under the names of Triton's back end.

    Those are ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode``, ``enable_mem_arena``,
    ``enable_mem_pattern``, and anything that starts with ``session.``.
    """
    options = onnxruntime.SessionOptions()
    parameters = config.metadata.parameters
    intra = _integer(config, "intra_op_thread_count", settings.intra_op_threads)
    options.intra_op_num_threads = intra or available_cores()
    options.inter_op_num_threads = _integer(config, "inter_op_thread_count", 1)
    options.execution_mode = (
        onnxruntime.ExecutionMode.ORT_PARALLEL
        if _integer(config, "execution_mode", 0) == 1
        else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    )
    options.enable_cpu_mem_arena = bool(_integer(config, "enable_mem_arena", 1))
    options.enable_mem_pattern = bool(_integer(config, "enable_mem_pattern", 1))
    options.graph_optimization_level = _GRAPH_LEVELS.get(
        config.graph_level or 0, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options


def _integer(config: ModelConfig, key: str, default: int) -> int:
    text = config.metadata.parameters.get(key)
    if text is None:
        return default
    if not text.isdecimal():
        raise RepositoryError(f"{config.source}: parameter {key} must be a number of 0 or more, got {text!r}")
    return int(text)


def _check_signature(config: ModelConfig, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """The config's inputs must be the network's; its outputs may be some of the network's, as in Triton."""
    have_inputs = {node.name: node for node in inputs}
    have_outputs = {node.name: node for node in outputs}
    wanted = {spec.name for spec in config.metadata.inputs}
    if wanted != set(have_inputs):
        raise RepositoryError(
            f"{config.source}: inputs {sorted(wanted)} are not those of {config.onnx}: {sorted(have_inputs)}"
        )
    for spec in config.metadata.outputs:
        if spec.name not in have_outputs:
            raise RepositoryError(f"{config.source}: {config.onnx} has no output {spec.name!r}: {sorted(have_outputs)}")
    _check_nodes(config, "input", config.metadata.inputs, have_inputs)
    _check_nodes(config, "output", config.metadata.outputs, have_outputs)


def _check_nodes(config: ModelConfig, kind: str, specs: Sequence[TensorSpec], nodes: Mapping[str, Any]) -> None:
    batched = config.metadata.max_batch_size > 0
    for spec in specs:
        node = nodes[spec.name]
        where = f"{config.source}: {kind} {spec.name!r}"
        if _ONNX_TYPES.get(node.type) != spec.dtype:
            raise RepositoryError(f"{where} is {spec.dtype}, but {config.onnx} has {node.type}")
        shape = [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]  # named axes are free ones
        wanted = [-1, *spec.shape] if batched else list(spec.shape)
        if not shape and wanted:
            continue  # ONNX does not know the rank; the warm-up run shows it
        if batched and shape and shape[0] != -1:
            raise RepositoryError(f"{where}: max_batch_size needs a free first axis, {config.onnx} has {shape}")
        if not fits(wanted, shape):
            raise RepositoryError(f"{where} has shape {wanted} with max_batch_size, but {config.onnx} has {shape}")
