"""What OpenAPI says about ``POST /v1/pose``: its body comes in three forms, which a signature cannot say."""

from __future__ import annotations

from typing import Any

from service.bodies import RAW_TYPES, JsonBody
from service.deadlines import HEADER as TIMEOUT_HEADER
from service.options import PoseOptions
from service.problems import MEDIA_TYPE

_PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable; opening it explains it.", "example": "/problems/too-large"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "Names what was wrong, with the value."},
        "instance": {"type": "string"},
        "image_index": {"type": "integer", "description": "Which picture of the request, from 0."},
        "request_id": {"type": "string"},
    },
}
_ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["info", "images", "annotations", "categories"],
    "properties": {
        "info": {"type": "object", "description": "Every option in force, the models and the version."},
        "images": {"type": "array", "items": {"type": "object"}, "description": "id, width and height (upright)."},
        "annotations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "image_id": {"type": "integer"},
                    "category_id": {"type": "integer", "const": 1},
                    "keypoints": {
                        "type": "array",
                        "items": {"type": "number"},
                        "description": "x, y, v for each joint, in pixels; v is 2 at or above score_threshold, else 1.",
                    },
                    "keypoint_scores": {"type": "array", "items": {"type": "number"}},
                    "num_keypoints": {"type": "integer", "description": "Joints with v = 2."},
                    "bbox": {"type": "array", "items": {"type": "number"}, "description": "x, y, width, height."},
                    "area": {"type": "number", "description": "Of the box."},
                    "iscrowd": {"type": "integer", "const": 0},
                    "score": {"type": "number"},
                    "box_score": {"type": "number"},
                },
            },
        },
        "categories": {"type": "array", "items": {"type": "object"}, "description": "The skeleton, as in COCO."},
    },
}
_RESULTS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "required": ["image_id", "category_id", "keypoints", "score"]},
    "description": "`format=results`: what pycocotools' `loadRes` reads; the third value of a joint is its score.",
}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _problem_response(description: str, *, comes_back: bool = False) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description, "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}}
    if comes_back:
        response["headers"] = {
            "Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer"}}
        }
    return response


PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: _problem_response("An API key is needed."),
    403: _problem_response("The API key is not known."),
    429: _problem_response("This caller asks faster than he may.", comes_back=True),
    503: _problem_response("The engine is not available.", comes_back=True),
}
_KEY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_TIMEOUT_PARAMETER: dict[str, Any] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds that the caller waits, from the request's arrival to its answer, such as 2.5; also less "
    "than 1, and as many as the service allows (120 unless it was told otherwise).",
    "schema": {"type": "string", "pattern": r"^(([1-9][0-9]?|1[01][0-9])(\.[0-9]{1,3})?|120)$", "example": "2.5"},
}


def declare_keys(document: dict[str, Any], needed: bool) -> dict[str, Any]:
    """Say in the OpenAPI document how keys are sent, and on which routes they are needed."""
    if needed:
        document.setdefault("components", {})["securitySchemes"] = _KEY_SCHEMES
        for path, operations in document["paths"].items():
            if path == "/v1/pose" or path.startswith("/v1/models"):
                for operation in operations.values():
                    operation["security"] = [{name: []} for name in _KEY_SCHEMES]
    return document


def _query_parameters() -> list[dict[str, Any]]:
    schema = PoseOptions.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": properties.pop("description", ""),
            "schema": {"type": "string", "example": "1,1,1"} if name == "fusion" else properties,
        }
        for name, properties in schema.items()
    ]


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, since OpenAPI looks for them elsewhere."""
    definitions = schema.pop("$defs", {})
    schema["properties"]["images"]["items"] = definitions["JsonImage"]
    return schema


POSE_OPERATION: dict[str, Any] = {
    "parameters": [*_query_parameters(), _TIMEOUT_PARAMETER],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "One or several files. Options may be further fields.",
                        }
                    },
                }
            },
            **dict.fromkeys(RAW_TYPES, _BINARY),
            "application/json": {"schema": _inline(JsonBody.model_json_schema())},
        },
    },
    "responses": {
        "200": {
            "description": "The people, best first.",
            "content": {
                "application/json": {"schema": {"oneOf": [_ANSWER_SCHEMA, _RESULTS_SCHEMA]}},
                "image/png": _BINARY,
                "image/jpeg": _BINARY,
            },
        },
        "400": _problem_response("Not a readable picture or body."),
        "408": _problem_response("The body arrived too slowly."),
        "413": _problem_response("Too many bytes, pixels or pictures."),
        "415": _problem_response("A content type or picture format that is not served."),
        "422": _problem_response("An option, or a time-out, that is unknown or out of range."),
        "429": _problem_response("The queue is full or too long, or this caller asks too much.", comes_back=True),
        "500": _problem_response("The models failed."),
        "504": _problem_response("The deadline passed."),
    },
}
