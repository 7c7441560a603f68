"""A client of the service: pictures in, COCO answers out, errors with the problem document they carry.

    with PoseClient("http://localhost:8000") as client:
        answer = client.pose(Path("photo.jpg").read_bytes(), max_people=5)
        for person in answer["annotations"]:
            print(person["score"], person["keypoints"])

``AsyncPoseClient`` is the same with ``await``. Connections are kept and shared; both are safe to call from many
tasks or threads at a time.

    ClientError
    ├── ServiceUnreachable   nobody answered: refused, cut off, timed out
    └── ProblemError         the service refused, with status, type and detail
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

import httpx

JsonObject: TypeAlias = dict[str, Any]

# A request waits at most this long for its turn and its answer: the service's own deadline is 30 s.
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)
_BUSY = (429, 503)
_LONGEST_PAUSE = 10.0


class ClientError(Exception):
    """Base of what the client raises."""


class ServiceUnreachable(ClientError):
    """Nobody answered; ``__cause__`` is httpx's error."""


class ProblemError(ClientError):
    """The service answered with an error.

    Attributes:
        status: HTTP status.
        problem: the whole problem document (RFC 9457); a made-up one where a proxy answered something else.
        type: stable last part of the problem's type, e.g. ``invalid-option``.
        title, detail: what is wrong, in words.
        image_index: 0-based place of the picture at fault, None where it is not one picture's fault.
        request_id: for the service's log.
        retry_after: seconds after which trying again makes sense, None where the service did not say.
    """

    def __init__(self, status: int, problem: JsonObject, retry_after: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.type = str(problem.get("type", "about:blank")).rsplit("/", 1)[-1]
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        index = problem.get("image_index")
        self.image_index: int | None = index if isinstance(index, int) else None
        request_id = problem.get("request_id")
        self.request_id: str | None = request_id if isinstance(request_id, str) else None
        self.retry_after = retry_after
        super().__init__(f"{status} {self.type}: {self.detail or self.title}")


@dataclass(frozen=True)
class PoseImage:
    """A picture with what belongs to it.

    Attributes:
        data: the encoded file (JPEG, PNG, WebP).
        id: ``image_id`` of the answer; by default its place in the request, from 1.
        boxes: people as COCO boxes ``[x, y, width, height]`` in pixels: these are posed, no detector runs.
    """

    data: bytes
    id: int | None = None
    boxes: Sequence[Sequence[float]] | None = None


Images: TypeAlias = bytes | PoseImage | Sequence[bytes | PoseImage]


def pose_request(images: Images, options: JsonObject) -> JsonObject:
    """The parts of an HTTP request for pictures, as keyword arguments of httpx: query and body.

    Plain bytes go as multipart files, pictures with an id or boxes as JSON.
    """
    several = [images] if isinstance(images, bytes | PoseImage) else list(images)
    request: JsonObject = {"params": {name: _as_text(value) for name, value in options.items() if value is not None}}
    if all(isinstance(image, bytes) for image in several):
        request["files"] = [("image", (f"image{k}", image)) for k, image in enumerate(several)]
    else:
        pictures = [image if isinstance(image, PoseImage) else PoseImage(image) for image in several]
        request["json"] = {"images": [_as_json(picture) for picture in pictures]}
    return request


def read_answer(response: httpx.Response) -> Any:
    """JSON parsed, a drawn picture as bytes. Raises ProblemError for every status of 400 and above."""
    if response.is_error:
        raise _problem(response)
    if response.headers.get("content-type", "").startswith("image/"):
        return response.content
    return response.json()


class PoseClient:
    """A client that blocks. Use it as a context manager, or call :meth:`close`."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        retries: int = 0,
        timeout: httpx.Timeout | float = _TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            url: where the service is, e.g. ``http://localhost:8000``.
            api_key: sent as a bearer token.
            retries: how often to try again when the service is busy (429) or starting (503), after the pause it
                asks for.
            timeout: seconds, or httpx's own.
            transport: httpx's, for tests and proxies.
        """
        self._retries = retries
        self._http = httpx.Client(
            base_url=url, headers=_headers(api_key), timeout=timeout, limits=_LIMITS, transport=transport
        )

    @overload
    def pose(self, images: Images, *, format: Literal["results"], **options: object) -> list[JsonObject]: ...
    @overload
    def pose(self, images: Images, *, format: Literal["image"], **options: object) -> bytes: ...
    @overload
    def pose(self, images: Images, *, format: Literal["coco"] = "coco", **options: object) -> JsonObject: ...
    def pose(self, images: Images, *, format: str = "coco", **options: object) -> Any:
        """Find the people of one picture or several.

        Args:
            images: encoded files, or :class:`PoseImage` where ids or boxes matter.
            format: ``coco`` for the whole document, ``results`` for the list that pycocotools' ``loadRes``
                takes, ``image`` for the drawn PNG.
            options: the service's (``model``, ``max_people``, ``fusion="1,0,0"`` ...); None leaves one out.

        Raises:
            ProblemError, ServiceUnreachable.
        """
        return self._send("POST", "/v1/pose", pose_request(images, {**options, "format": format}))

    def models(self) -> Any:
        """What is loaded, as ``GET /v1/models`` answers."""
        return self._send("GET", "/v1/models", {})

    def ready(self) -> bool:
        """Whether the models answer; False too when nobody does."""
        try:
            return self._http.get("/v1/health/ready").is_success
        except httpx.TransportError:
            return False

    def wait_until_ready(self, seconds: float) -> None:
        """Poll until :meth:`ready`. Raises ServiceUnreachable after ``seconds``."""
        end = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > end:
                raise ServiceUnreachable(f"{self._http.base_url} is not ready after {seconds:g} s")
            time.sleep(0.05)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> PoseClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, request: JsonObject) -> Any:
        attempt = 0
        while True:
            try:
                return read_answer(self._http.request(method, path, **request))
            except httpx.TransportError as error:
                raise ServiceUnreachable(f"{method} {self._http.base_url}{path}: {error!r}") from error
            except ProblemError as problem:
                if problem.status not in _BUSY or attempt == self._retries:
                    raise
                time.sleep(_pause(problem, attempt))
                attempt += 1


class AsyncPoseClient:
    """The client for asyncio. Use it as an async context manager, or call :meth:`close`."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        retries: int = 0,
        timeout: httpx.Timeout | float = _TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As :class:`PoseClient`."""
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(api_key), timeout=timeout, limits=_LIMITS, transport=transport
        )

    @overload
    async def pose(self, images: Images, *, format: Literal["results"], **options: object) -> list[JsonObject]: ...
    @overload
    async def pose(self, images: Images, *, format: Literal["image"], **options: object) -> bytes: ...
    @overload
    async def pose(self, images: Images, *, format: Literal["coco"] = "coco", **options: object) -> JsonObject: ...
    async def pose(self, images: Images, *, format: str = "coco", **options: object) -> Any:
        """As :meth:`PoseClient.pose`."""
        return await self._send("POST", "/v1/pose", pose_request(images, {**options, "format": format}))

    async def models(self) -> Any:
        """As :meth:`PoseClient.models`."""
        return await self._send("GET", "/v1/models", {})

    async def ready(self) -> bool:
        """As :meth:`PoseClient.ready`."""
        try:
            return (await self._http.get("/v1/health/ready")).is_success
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncPoseClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, method: str, path: str, request: JsonObject) -> Any:
        attempt = 0
        while True:
            try:
                return read_answer(await self._http.request(method, path, **request))
            except httpx.TransportError as error:
                raise ServiceUnreachable(f"{method} {self._http.base_url}{path}: {error!r}") from error
            except ProblemError as problem:
                if problem.status not in _BUSY or attempt == self._retries:
                    raise
                await asyncio.sleep(_pause(problem, attempt))
                attempt += 1


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(f"{weight:g}" for weight in value)
    return str(value)


def _as_json(picture: PoseImage) -> JsonObject:
    entry: JsonObject = {"data": base64.b64encode(picture.data).decode()}
    if picture.id is not None:
        entry["id"] = picture.id
    if picture.boxes is not None:
        entry["boxes"] = [[float(value) for value in box] for box in picture.boxes]
    return entry


def _problem(response: httpx.Response) -> ProblemError:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        # A proxy between, or a service that is not ours.
        document = {"title": response.reason_phrase, "detail": response.text[:500]}
    wait = response.headers.get("retry-after", "")
    return ProblemError(response.status_code, document, float(wait) if wait.isdecimal() else None)


def _pause(problem: ProblemError, attempt: int) -> float:
    """What the service asks for; else 0.2 s, doubled each time."""
    return min(_LONGEST_PAUSE, problem.retry_after if problem.retry_after is not None else 0.2 * 2**attempt)
