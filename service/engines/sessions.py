"""One ONNX Runtime session for each network of the repository, checked against its config.pbtxt."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime

from service.cores import available_cores
from service.engines.base import Array, Tensors, TensorSpec
from service.engines.config import BatchPolicy, ModelConfig, Report, RepositoryError, WarmUp, refuse
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
# Four crops of 256x192. Processor time of a row, two threads at it: crops 8.7 ms alone, 8.1 in fours, 8.6 in eights;
# pictures of 384x384 for a detector 17.6 ms alone and in twos, 18.3 in fours.
_CPU_BATCH_BYTES = 640 * 1024
_FATAL_ONLY = 4  # errors come back as exceptions and are logged once


@dataclass(frozen=True)
class RuntimeSettings:
    """How much of the machine inference may use.

    The defaults were measured on 2 cores: spinning threads cost three times the CPU time as soon as anything else
    runs on the cores, be it this process's own decoding of pictures.

    Attributes:
        intra_op_threads: threads inside a run that is alone; 0 for the cores this process may use. On a CPU, runs that
            begin beside others have their share of these only: two threads cost 10 % more CPU time than one, and
            pay when there is a core to spare.
        concurrent_runs: runs at a time over all models. Two keep the cores busy where one run has serial parts, and
            while an answer is on its way back.
        spinning: idle ONNX Runtime threads spin for their next task instead of sleeping.
        cpu_rows: most rows in one run on a CPU, below the config's ``max_batch_size``; 0 for no such bound. On a CPU
            larger batches gain nothing (7.5 ms of CPU time for a crop at 4 rows, 7.6 ms at 8) and ONNX Runtime keeps
            their memory for ever (370 MB at 4 rows, 600 MB at 8, where each session has its own).
        providers: ONNX Runtime execution providers in order of preference; empty for CUDA where the installed
            ONNX Runtime has it, then CPU.
        warm_up: run every network's ``model_warmup`` samples (one row of zeros where it names none) before it answers,
            so that a network that cannot run is found before the first request, and no request pays for it.
        drain_seconds: how long ``close`` waits for requests in flight.
        reload_seconds: how often the repository is looked at for new versions; 0 for never.
    """

    intra_op_threads: int = 0
    concurrent_runs: int = 2
    spinning: bool = False
    cpu_rows: int = 4
    providers: tuple[str, ...] = ()
    warm_up: bool = True
    drain_seconds: float = 30.0
    reload_seconds: float = 0.0

    def __post_init__(self) -> None:
        amounts = (self.intra_op_threads, self.cpu_rows, self.drain_seconds, self.reload_seconds)
        if not all(amount >= 0 for amount in amounts) or self.concurrent_runs < 1:
            raise ValueError(f"runtime settings out of range: {self}")


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
    """A loaded network. ``run`` may be called from several threads at a time; ``batching`` is how to queue for it.

    On a CPU it is loaded twice where that pays: with all threads for runs that are alone, and with fewer for those that
    share the cores.

    Attributes:
        one_core: a run that shares the cores takes one of them, that of the thread which calls it.
    """

    def __init__(self, config: ModelConfig, settings: RuntimeSettings, report: Report = refuse) -> None:
        """Load and check.

        Raises:
            RepositoryError: the file cannot be loaded or, by the default ``report``, does not fit its config.
        """
        self.config = config
        providers = ("CPUExecutionProvider",) if config.cpu_only else chosen_providers(settings)
        cuda = cuda_options(config)
        provider_options = [cuda if provider == "CUDAExecutionProvider" else {} for provider in providers]
        options = session_options(config, settings)
        if providers == ("CPUExecutionProvider",) and options.enable_cpu_mem_arena:
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")

        def load() -> Any:
            try:
                return onnxruntime.InferenceSession(
                    str(config.onnx), sess_options=options, providers=list(providers), provider_options=provider_options
                )
            except Exception as error:  # the runtime's exceptions share no base class but Exception
                raise RepositoryError(f"{config.onnx}: ONNX Runtime cannot load it: {error}") from error

        self.session: Any = load()
        self.providers: tuple[str, ...] = tuple(self.session.get_providers())
        on_cpu = self.providers == ("CPUExecutionProvider",)
        share = max(1, options.intra_op_num_threads // settings.concurrent_runs)
        self.shared_session = self.session
        if (
            on_cpu
            and share < options.intra_op_num_threads
            and "intra_op_thread_count" not in config.metadata.parameters
        ):
            options.intra_op_num_threads = share
            self.shared_session = load()
        self.one_core = on_cpu and options.intra_op_num_threads == 1
        self.batching = _cpu_batching(config, settings) if on_cpu else config.batching
        self._outputs = [spec.name for spec in config.metadata.outputs]
        check_signature(config, self.session.get_inputs(), self.session.get_outputs(), report)

    def run(
        self, inputs: Tensors, options: onnxruntime.RunOptions | None = None, alone: bool = True
    ) -> dict[str, Array]:
        """Run one batch in the calling thread, without the GIL.

        Args:
            inputs: every input by name, within the config's shapes; contiguous ones are not copied.
            options: set ``terminate`` on them to end the run early.
            alone: no other run is in progress: take all threads.
        """
        session = self.session if alone else self.shared_session
        return dict(zip(self._outputs, session.run(self._outputs, inputs, options), strict=True))

    def warm_up(self) -> None:
        """Run the config's ``model_warmup`` samples and check the answers' shapes.

        A sample of more rows than one run takes here (``batching.max_rows``) is run with that many. Where the config
        names no sample, one row of zeros; networks with axes of free length are then left out.

        Raises:
            RepositoryError: the network fails, or its outputs are not what its config says.
        """
        metadata = self.config.metadata
        if any(spec.dtype == "object" for spec in metadata.inputs):
            return
        samples = self.config.warm_up
        if not samples and all(dim >= 0 for spec in metadata.inputs for dim in spec.shape):
            shapes = {spec.name: spec.shape for spec in metadata.inputs}
            samples = (WarmUp("one row of zeros", 1 if metadata.max_batch_size else 0, shapes),)
        done = set()
        for sample in samples:
            rows = (min(sample.rows, self.batching.max_rows),) if metadata.max_batch_size else ()
            if (rows, tuple(sample.shapes.values())) not in done:
                done.add((rows, tuple(sample.shapes.values())))
                self._warm_up_with(sample, rows)

    def _warm_up_with(self, sample: WarmUp, rows: tuple[int, ...]) -> None:
        metadata, random = self.config.metadata, np.random.default_rng(0)
        inputs = {}
        for spec in metadata.inputs:
            shape = rows + sample.shapes[spec.name]
            numbers = random.random(shape) * (255 if spec.dtype == "uint8" else 1) if spec.name in sample.random else 0
            inputs[spec.name] = np.broadcast_to(np.asarray(numbers).astype(spec.dtype), shape).copy()
        try:
            if self.shared_session is not self.session:
                self.run(inputs, alone=False)
            outputs = self.run(inputs)
        except Exception as error:
            raise RepositoryError(
                f"{self.config.onnx}: it does not run on its warm-up sample ({sample.name}): {error}"
            ) from error
        for spec in metadata.outputs:
            if not fits(outputs[spec.name].shape, rows + spec.shape):
                raise RepositoryError(
                    f"{self.config.source}: output {spec.name!r} has dims {list(spec.shape)}, but the network gives "
                    f"{list(outputs[spec.name].shape[len(rows) :])}"
                )


def _cpu_batching(config: ModelConfig, settings: RuntimeSettings) -> BatchPolicy:
    """The config's policy, where a run on a CPU gains by more rows.

    What rows share is the reading of the weights. A network of fewer bytes than one of its rows (mirroring, fusion)
    shares nothing, and requests are not joined for it: copying their rows together costs more than its arithmetic.
    Nor are they queued for it by a worker, which would spend as long on that as on the run.
    Large rows push each other out of the caches instead: beyond :data:`_CPU_BATCH_BYTES` of input each runs alone.
    """
    rows = min(config.batching.max_rows, settings.cpu_rows or config.batching.max_rows)
    row_bytes = sum(
        math.prod(max(dim, 1) for dim in spec.shape) * np.dtype(spec.dtype).itemsize for spec in config.metadata.inputs
    )
    assert config.onnx is not None, "only networks are loaded"
    shares = config.onnx.stat().st_size >= row_bytes
    if shares and settings.cpu_rows:
        rows = min(rows, max(1, _CPU_BATCH_BYTES // row_bytes))
    return replace(
        config.batching, max_rows=rows, joins=config.batching.joins and shares and rows > 1, at_once=not shares
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


@functools.cache
def _share_arena() -> None:
    """Let all sessions of the process that ask for it take their memory from one arena.

    By itself each has its own, which keeps the most that it ever needed: together 370 MB for runs that never need more
    than 230 MB at a time (networks of 2.9 million parameters, 4 rows), at the same speed.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


# Numbers that Triton's back end takes, to ONNX Runtime's words for them.
_CUDA_CHOICES = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "do_copy_in_default_stream": ("0", "1"),
}


def cuda_options(config: ModelConfig) -> dict[str, str]:
    """Options of the CUDA execution provider from the model's ``parameters``, under the names of Triton's back end.

    Those are ``cudnn_conv_algo_search``, ``arena_extend_strategy``, ``do_copy_in_default_stream`` (numbers) and
    ``gpu_mem_limit`` (bytes). Raises RepositoryError for other values.
    """
    # ONNX Runtime's default search tries every cuDNN algorithm anew for each batch size; the heuristic does not.
    options = {"cudnn_conv_algo_search": "HEURISTIC"}
    for key, words in _CUDA_CHOICES.items():
        if key in config.metadata.parameters:
            number = _integer(config, key, 0)
            if number >= len(words):
                raise RepositoryError(f"{config.source}: parameter {key} must be under {len(words)}, got {number}")
            options[key] = words[number]
    if limit := _integer(config, "gpu_mem_limit", 0):
        options["gpu_mem_limit"] = str(limit)
    return options


def _integer(config: ModelConfig, key: str, default: int) -> int:
    text = config.metadata.parameters.get(key)
    if text is None:
        return default
    if not text.isdecimal():
        raise RepositoryError(f"{config.source}: parameter {key} must be a number of 0 or more, got {text!r}")
    return int(text)


def check_signature(
    config: ModelConfig, inputs: Sequence[Any], outputs: Sequence[Any], report: Report = refuse
) -> None:
    """Check the tensors of a session, of :meth:`InferenceSession.get_inputs` and ``get_outputs``, against the config.

    The config's inputs must be the network's; its outputs may be some of the network's, as in Triton.

    Raises:
        RepositoryError: by the default ``report``, with the first fault.
    """
    have_inputs = {node.name: node for node in inputs}
    have_outputs = {node.name: node for node in outputs}
    wanted = {spec.name for spec in config.metadata.inputs}
    if wanted != set(have_inputs):
        report(f"{config.source}: inputs {sorted(wanted)} are not those of {config.onnx}: {sorted(have_inputs)}")
    for spec in config.metadata.outputs:
        if spec.name not in have_outputs:
            report(f"{config.source}: {config.onnx} has no output {spec.name!r}: {sorted(have_outputs)}")
    _check_nodes(config, "input", config.metadata.inputs, have_inputs, report)
    _check_nodes(config, "output", config.metadata.outputs, have_outputs, report)


def _check_nodes(
    config: ModelConfig, kind: str, specs: Sequence[TensorSpec], nodes: Mapping[str, Any], report: Report
) -> None:
    batched = config.metadata.max_batch_size > 0
    for spec in specs:
        node = nodes.get(spec.name)
        if node is None:
            continue  # reported by name
        where = f"{config.source}: {kind} {spec.name!r}"
        if _ONNX_TYPES.get(node.type) != spec.dtype:
            report(f"{where} is {spec.dtype}, but {config.onnx} has {node.type}")
        shape = [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]  # named axes are free ones
        wanted = [-1, *spec.shape] if batched else list(spec.shape)
        if not shape and wanted:
            continue  # ONNX does not know the rank; the warm-up run shows it
        if batched and shape and shape[0] != -1:
            report(f"{where}: max_batch_size needs a free first axis, {config.onnx} has {shape}")
        elif not fits(wanted, shape):
            report(f"{where} has shape {wanted} with max_batch_size, but {config.onnx} has {shape}")
