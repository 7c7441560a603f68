"""The application: settings and an engine in, an ASGI application out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service import __version__, api_page, problems, routes
from service.admission import Admission
from service.api_docs import declare_keys
from service.callers import Callers
from service.correlation import Correlation
from service.deadlines import HEADER as TIMEOUT_HEADER
from service.direct_route import DirectRoute
from service.engine_choice import open_engine
from service.engines.base import Engine
from service.keys import KeyRing
from service.metrics import Metrics
from service.pipeline import PosePipeline
from service.readiness import Readiness
from service.safe_headers import SafeHeaders
from service.settings import Settings
from service.state import Service
from service.tracing import open_tracing

# Between two refreshes of a worker's figures; Prometheus comes every five seconds or more seldom.
_REFRESH_SECONDS = 1.0
# FastAPI's own. The spans are service.tracing's, which tell neither query strings nor stack traces; and looking for
# providers, in the environment too, takes 0.04 ms of each request on cores that are busy with networks.
_NO_TELEMETRY: Any = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
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
    tracing = open_tracing()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.readiness.begin()
        refreshing = asyncio.create_task(_keep_fresh(metrics)) if metrics.shared else None
        try:
            yield
        finally:
            service.readiness.drain()
            await service.readiness.end()
            await engine.close()
            pipeline.close()
            if refreshing:
                refreshing.cancel()
            if tracing:
                await asyncio.to_thread(tracing.close)

    app = _Application(
        title="tritonpose",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        telemetry=_NO_TELEMETRY,
        openapi_url="/openapi.json" if settings.api_docs else None,
        docs_url=None,  # service.api_page: without a content network
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(routes.router)
    if settings.api_docs:
        app.include_router(api_page.router)
    problems.install(app)
    app.add_middleware(DirectRoute, route=routes.pose_route())
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-ID", TIMEOUT_HEADER],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(Correlation, metrics=metrics, tracing=tracing, closing=lambda: service.readiness.closing)
    app.add_middleware(SafeHeaders)
    return app


class _Application(FastAPI):
    """FastAPI, with an OpenAPI document that knows of the keys."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        service: Service = self.state.service
        return declare_keys(super().openapi(), service.keys.required)


async def _keep_fresh(metrics: Metrics) -> None:
    """Other workers' scrapes show this one's figures too, which must not be as old as its own last scrape."""
    while True:
        metrics.refresh()
        await asyncio.sleep(_REFRESH_SECONDS)
