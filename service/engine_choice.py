"""The engine of the settings, imported when it is opened: what does not infer does not load ONNX Runtime."""

from __future__ import annotations

from service.engines.base import Engine
from service.settings import Settings


def open_engine(settings: Settings) -> Engine:
    """Make the engine; no model is read before its ``start``."""
    from service.engines.embedded import EmbeddedEngine
    from service.engines.sessions import RuntimeSettings

    return EmbeddedEngine(settings.repository, RuntimeSettings(intra_op_threads=settings.threads))
