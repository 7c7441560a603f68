"""From a typed graph to a plan, with TensorRT's Python API of 10.x and 11.x.

It knows nothing of models and repositories; ``trt`` is the ``tensorrt`` module, given by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoints import ExportError

Shape = tuple[int, ...]
_TOLD = 5  # of TensorRT's own errors


@dataclass(frozen=True)
class BuildOptions:
    """How long and with how much memory TensorRT may look for the fastest kernels.

    Attributes:
        workspace: bytes of GPU memory that a kernel may use beside the maps.
        level: 0 to 5; 3 is TensorRT's default, 5 takes several times as long.
        timing_cache: file with the timings of earlier builds, read and written; None for none. It belongs to one
            TensorRT version and GPU type.
    """

    workspace: int = 4 << 30
    level: int = 3
    timing_cache: Path | None = None


def build_plan(
    trt: Any, graph: bytes, shapes: Mapping[str, tuple[Shape, Shape, Shape]], options: BuildOptions
) -> bytes:
    """Build.

    Args:
        trt: the module.
        graph: ONNX, every type written out.
        shapes: least, usual and largest shape of every input.
        options: see :class:`BuildOptions`.

    Raises:
        ExportError: TensorRT cannot read the graph or finds no kernels for it; with its own words.
    """
    logger = _collecting_logger(trt)
    # RoIAlign is a plugin of TensorRT's own.
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [parser.get_error(index).desc() for index in range(min(parser.num_errors, _TOLD))]
        raise ExportError(f"TensorRT cannot read the graph: {'; '.join(errors)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.builder_optimization_level = options.level
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"TensorRT refuses the profile {dict(shapes)}: {logger.told()}")
    cache = _load_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT cannot build a plan: {logger.told()}")
    if options.timing_cache is not None and cache is not None:
        options.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _load_cache(config: Any, path: Path | None) -> Any:
    """Timings of earlier builds; those of another GPU or version are refused by TensorRT and built anew."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _collecting_logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors: a failed build tells its reason nowhere else."""

    class Collecting(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def told(self) -> str:
            return "; ".join(self.errors[-_TOLD:]) or "it gave no reason"

    return Collecting()
