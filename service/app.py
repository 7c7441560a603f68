"""The application: settings and an engine in, an ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__, problems, routes
from service.admission import Admission
from service.callers import Callers
from service.correlation import Correlation
from service.engine_choice import open_engine
from service.engines.base import Engine
from service.keys import KeyRing
from service.metrics import Metrics
from service.pipeline import PosePipeline
from service.readiness import Readiness
from service.settings import Settings
from service.state import Service

_DESCRIPTION = """An image in, COCO poses out.

`curl -F image=@photo.jpg localhost:8000/v1/pose` answers with every person's joints as COCO JSON.
Errors are `application/problem+json` (RFC 9457) with a stable `type`."""


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: from the environment when None.
        engine: the one that the settings name when None; the application starts and closes it.
    """
    settings = settings or Settings()
    engine = engine or open_engine(settings)
    metrics = Metrics()
    pipeline = PosePipeline(engine, settings, metrics)
    service = Service(
        settings,
        engine,
        pipeline,
        metrics,
        Admission(settings),
        KeyRing(settings.api_keys, settings.api_keys_file),
        Callers(settings),
        Readiness(engine, pipeline, metrics),
    )
    metrics.watch(service.admission, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.readiness.begin()
        try:
            yield
        finally:
            service.readiness.drain()
            await service.readiness.end()
            await engine.close()
            pipeline.close()

    app = FastAPI(title="tritonpose", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.state.service = service
    app.include_router(routes.router)
    problems.install(app)
    app.add_middleware(Correlation, metrics=metrics)
    return app
