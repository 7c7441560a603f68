"""The HTTP routes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from service import __version__, coco, problems
from service.admission import Visit
from service.api_docs import POSE_OPERATION, PROBLEMS
from service.bodies import Body, parse_body, read_bytes
from service.callers import Caller
from service.catalogue import find_model, list_models
from service.deadlines import HEADER as TIMEOUT_HEADER
from service.deadlines import finish_within, read_timeout
from service.drawing import draw_people, encode_picture
from service.engines.base import Engine
from service.errors import ClientGone, InvalidOption, NotFound
from service.image_header import ImageHeader
from service.jpeg_header import ordinary_jpeg
from service.options import PoseOptions, read_options
from service.pipeline import FEW_PEOPLE, Answer
from service.records import record_of
from service.scenes import render_scene
from service.stages import Stages
from service.state import Service, service_of

_PAGE = Path(__file__).parent / "page" / "index.html"
_JSON = "application/json"
# The page is one file and talks to this service only; of scripts, its own is run, known by its hash.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PNG, _JPEG = "image/png", "image/jpeg"
POSE_PATH = "/v1/pose"
# A body that is one ordinary JPEG file up to this size is parsed in 0.1 ms at most: a thread would cost more.
_SMALL_BODY = 256 * 1024
_USUAL_PEOPLE = PoseOptions().max_people


router = APIRouter()


@router.post(
    POSE_PATH,
    summary="Find the people of one or several pictures",
    openapi_extra=POSE_OPERATION,
    responses=PROBLEMS,
)
async def pose(request: Request) -> Response:
    """Every person's joints: a COCO document, a results list, or the drawn picture."""
    caller = _authorize(request)
    service, record = service_of(request), record_of(request)
    stages = record.stages
    service.readiness.require_started()
    seconds = read_timeout(request.headers.get(TIMEOUT_HEADER), service.settings)
    deadline = asyncio.get_running_loop().time() + seconds
    given, options = _query_options(request.scope["query_string"], service.settings.model)
    with service.admission.enter(caller, deadline) as visit:
        body, headers = await _read_body(request, service, visit, stages, seconds)
        record.images = len(body.pictures)
        if body.options:
            given += tuple(body.options)
            options = read_options(given, PoseOptions(model=service.settings.model))
        drawn_type = _drawn_type(request, options, any(name == "format" for name, _ in given))
        if drawn_type and len(body.pictures) != 1:
            raise InvalidOption(f"format: image answers one picture, the request has {len(body.pictures)}")

        _weigh(visit, service, body, headers, options)

        async def find(held: AsyncExitStack | None) -> Answer:
            answer = await service.pipeline.run(
                body.pictures,
                options,
                stages,
                headers=headers,
                keep_pixels=held is not None,
                until=held,
                deadline=deadline,
            )
            _learn(service, body, answer)
            record.people = sum(len(picture.people) for picture in answer.pictures)
            return answer

        async def work() -> bytes:
            async with visit.turn(stages):
                if drawn_type:
                    async with AsyncExitStack() as held:  # the picture's pixels count until it is drawn and encoded
                        return await service.pipeline.off_loop(_draw, await find(held), drawn_type, service, stages)
                answer = await find(None)
                if (record.people or 0) > FEW_PEOPLE:
                    return await service.pipeline.off_loop(_encode, answer, service, stages)
                return _encode(answer, service, stages)

        left = deadline - asyncio.get_running_loop().time()
        data = await finish_within(work(), left, _hang_up(request), asked=seconds)
    return Response(data, media_type=drawn_type or _JSON, headers={"Vary": "Accept"})


def pose_route() -> APIRoute:
    """The route of :func:`pose`, for :class:`service.direct_route.DirectRoute`."""
    return next(one for one in router.routes if isinstance(one, APIRoute) and one.path == POSE_PATH)


@router.get("/v1/models", summary="What is loaded", responses=PROBLEMS)
async def models(request: Request) -> Response:
    """Every model with its kind, versions, tensors, parameters and skeleton, and why newer ones are not taken."""
    _authorize(request)
    engine = service_of(request).engine
    return _json({"models": await list_models(engine), **_refusal(engine)})


@router.get("/v1/models/{name}", summary="One model", responses={**PROBLEMS, 404: {"description": "No such model."}})
async def model(request: Request, name: str) -> Response:
    """One model with its kind, versions, tensors, parameters and skeleton."""
    _authorize(request)
    return _json(await find_model(service_of(request).engine, name))


@router.get("/v1/health/live", tags=["health"], summary="The process is up")
async def live() -> Response:
    """200 as long as the process answers at all."""
    return _json({"status": "live", "version": __version__})


@router.get("/v1/health/ready", tags=["health"], summary="The models answer", responses={503: PROBLEMS[503]})
async def ready(request: Request) -> Response:
    """200 when a picture went through every model and the engine still answers; else 503 with the reason."""
    service = service_of(request)
    await service.readiness.check()
    told = {"status": "ready", "engine": service.engine.kind, "models": service.readiness.models}
    return _json({**told, **_refusal(service.engine)})


@router.get("/metrics", tags=["health"], summary="Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    if service_of(request).settings.metrics_need_key:
        service_of(request).keys.authenticate(request.headers)
    text = await service_of(request).metrics.scrape()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/problems/{kind}", include_in_schema=False)
async def problem_type(kind: str) -> Response:
    """What a problem type means."""
    known = problems.problem_types().get(kind)
    if known is None:
        raise NotFound(f"there is no problem type {kind[:50]!r}")
    title, status, text = known
    return _json({"type": problems.TYPE_PREFIX + kind, "title": title, "status": status, "description": text})


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page to drop a photo on."""
    html, tag, policy = _page()
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": policy}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(html, media_type="text/html", headers=headers)


@router.get("/sample.jpg", include_in_schema=False)
async def sample(request: Request) -> Response:
    """A rendered picture of people, for those who have no photo at hand."""
    data = await service_of(request).pipeline.off_loop(_sample)
    return Response(data, media_type=_JPEG, headers={"Cache-Control": "max-age=86400"})


def _authorize(request: Request) -> Caller:
    """Find out who asks, before anything else: his key, and the rate that he may ask at."""
    service, peer = service_of(request), request.client
    key = service.keys.authenticate(request.headers)
    record_of(request).client = key.name if key else None
    return service.callers.find(key, peer.host if peer else None)


async def _read_body(
    request: Request, service: Service, visit: Visit, stages: Stages, seconds: float
) -> tuple[Body, list[ImageHeader]]:
    headers = request.headers
    declared = headers.get("content-length", "")
    if declared.isdecimal():
        visit.expect_bytes(min(int(declared), service.settings.max_body_bytes))
    left = visit.deadline - asyncio.get_running_loop().time()
    try:
        with stages.measure("read"):
            data = await read_bytes(
                request.stream(), declared, service.settings, visit.hold_bytes, seconds=left, stop=visit.refused
            )
    except ClientDisconnect:
        raise ClientGone("the caller hung up while the body arrived") from None
    kind = headers.get("content-type", "")
    if len(data) <= _SMALL_BODY and ordinary_jpeg(data) is not None:
        return _parse(kind, data, service, stages)
    parsing = service.pipeline.off_loop(_parse, kind, data, service, stages)
    if len(data) <= _SMALL_BODY:
        return await parsing
    left = visit.deadline - asyncio.get_running_loop().time()
    return await finish_within(parsing, left, _hang_up(request), asked=seconds)


def _weigh(visit: Visit, service: Service, body: Body, headers: Sequence[ImageHeader], options: PoseOptions) -> None:
    """Count what the headers of the pictures tell before one is decoded."""
    given = [len(picture.boxes) for picture in body.pictures if picture.boxes is not None]
    detected = len(body.pictures) - len(given)
    people = sum(given) + service.admission.expected_people(detected, options.max_people)
    rows = service.pipeline.presets.rows_for_one(options.model, options.flip)
    visit.weigh(detected, sum(header.pixels for header in headers), people, rows)


def _learn(service: Service, body: Body, answer: Answer) -> None:
    """How many people there are in a picture; one that asks for fewer than is usual does not tell."""
    found = [
        len(picture.people)
        for sent, picture in zip(body.pictures, answer.pictures, strict=True)
        if sent.boxes is None and answer.options.max_people >= _USUAL_PEOPLE
    ]
    if found:
        service.admission.pace.found(len(found), sum(found))


def _parse(content_type: str, data: bytes, service: Service, stages: Stages) -> tuple[Body, list[ImageHeader]]:
    with stages.measure("parse"):
        body = parse_body(content_type, data, service.settings.max_images)
    return body, service.pipeline.read_headers(body.pictures, stages)


@lru_cache(128)
def _query_options(query: bytes, model: str) -> tuple[tuple[tuple[str, object], ...], PoseOptions]:
    """Options of a query string, as they were given and as they are meant; callers send the same one again and again.

    A wrong one is told before the body travels. Raises InvalidOption.
    """
    given = tuple(QueryParams(query).multi_items())
    return given, read_options(given, PoseOptions(model=model))


def _drawn_type(request: Request, options: PoseOptions, format_given: bool) -> str | None:
    """Media type of the drawn picture; None when JSON is wanted. An explicit ``format`` outweighs ``Accept``."""
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").lower().split(",")]
    wanted = next((kind for kind in accepted if kind in (_PNG, _JPEG)), None)
    if options.format == "image":
        return wanted or _PNG
    if format_given or not accepted or accepted[0] != wanted:
        return None
    return wanted


def _draw(answer: Answer, drawn_type: str, service: Service, stages: Stages) -> bytes:
    service.metrics.people_answered(answer.pictures)
    threshold = answer.options.score_threshold or 0.0
    with stages.measure("draw"):
        canvas = draw_people(answer.pictures[0], answer.pose.skeleton, threshold, in_place=True)
        return encode_picture(canvas, drawn_type, overwrite=True)


def _encode(answer: Answer, service: Service, stages: Stages) -> bytes:
    options = answer.options
    threshold = options.score_threshold or 0.0
    service.metrics.people_answered(answer.pictures)
    with stages.measure("encode"):
        if options.format == "results":
            return coco.encode(coco.results(answer.pictures))
        info = coco.info(options, answer.pose, service.engine.kind)
        return coco.encode(coco.document(answer.pictures, answer.pose.skeleton, threshold, info))


async def _hang_up(request: Request) -> None:
    """Ends when the caller closes the connection (the body has been read: nothing else can arrive)."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(engine: Engine) -> dict[str, str]:
    """What keeps the models of the repository from being served, while the ones before them go on."""
    return {"refused_update": engine.refused} if engine.refused else {}


@cache
def _page() -> tuple[bytes, str, str]:
    """The page, its entity tag and its content security policy."""
    html = _PAGE.read_bytes()
    script = html.partition(b"<script>")[2].partition(b"</script>")[0]
    policy = _PAGE_POLICY.format(script=base64.b64encode(hashlib.sha256(script).digest()).decode())
    return html, f'"{hashlib.sha256(html).hexdigest()[:16]}"', policy


@cache
def _sample() -> bytes:
    scene = render_scene(seed=14, size=(960, 640), people=3, stature=(0.6, 0.9), occluders=0, whole=True)
    return encode_picture(scene.image, _JPEG)


def _json(content: Any) -> Response:
    return Response(coco.encode(content), media_type=_JSON)
