"""``/docs``: Swagger UI from the package, so that the page needs no content network and its policy can be strict."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import NotFound

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HTML = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tritonpose API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""

router = APIRouter(include_in_schema=False)


class Asset(NamedTuple):
    """A file of the page."""

    data: bytes
    media_type: str
    tag: str


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page."""
    return _answer(request, _asset("index.html"), {"Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def part(request: Request, name: str) -> Response:
    """What the page loads."""
    if name not in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
        raise NotFound(f"there is nothing at {request.scope['path']}")
    return _answer(request, _asset(name), {})


def _answer(request: Request, asset: Asset, headers: dict[str, str]) -> Response:
    headers = {**headers, "ETag": asset.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, media_type=asset.media_type, headers=headers)


@cache
def _asset(name: str) -> Asset:
    made = {"index.html": _HTML, "start.js": _START}
    # The package carries Swagger UI's files (Apache-2.0); nothing else of it is used.
    data = made.get(name) or (resources.files("fastapi_offline") / "static" / name).read_bytes()
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
    return Asset(data, kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
