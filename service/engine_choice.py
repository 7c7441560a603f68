"""The engine of the settings, imported when it is opened: ONNX Runtime and the Triton client load only when used."""

from __future__ import annotations

from service.cores import available_cores
from service.engines.base import Engine
from service.settings import Settings


def open_engine(settings: Settings) -> Engine:
    """Make the engine; no model is read, and no server asked, before its ``start``."""
    if settings.engine == "triton":
        from service.engines.triton import TritonEngine, TritonSettings

        return TritonEngine(
            settings.triton_url,
            TritonSettings(concurrency=settings.triton_concurrency, shared_memory=settings.triton_shared_memory),
        )
    from service.engines.embedded import EmbeddedEngine
    from service.engines.sessions import RuntimeSettings

    runtime = RuntimeSettings(
        intra_op_threads=settings.threads,
        # A second run of a worker that has one core would only wait for the first one's cache lines to come back.
        concurrent_runs=1 if settings.workers >= available_cores() else 2,
        reload_seconds=settings.reload_seconds,
    )
    return EmbeddedEngine(settings.repository, runtime)
