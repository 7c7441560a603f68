"""The engine of the settings, imported when it is opened: ONNX Runtime and the Triton client load only when used."""

from __future__ import annotations

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

    runtime = RuntimeSettings(intra_op_threads=settings.threads, reload_seconds=settings.reload_seconds)
    return EmbeddedEngine(settings.repository, runtime)
