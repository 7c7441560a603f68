"""A picture of marked people, and what an answer about it has to be."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from tests.service.marked_people import Card, as_json, encode, paint

CARDS = (Card(20, 30, 60, 120, 0.9), Card(150, 60, 80, 140, 0.7), Card(250, 10, 50, 100, 0.5))
PHOTO = encode(paint(CARDS))
JPEG = encode(paint(CARDS), ".jpg")


def parsed(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return as_json(response.content)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document = parsed(response, status)
    assert document["type"] == f"/problems/{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return document


def check_people(document: dict[str, Any]) -> None:
    assert len(document["annotations"]) == len(CARDS)
    for one, card in zip(document["annotations"], CARDS, strict=True):
        joints = np.array(one["keypoints"]).reshape(-1, 3)
        assert np.abs(joints[:, :2] - card.points).max() < 0.6


def raw(content: bytes, kind: str = "image/jpeg", query: str = "") -> dict[str, Any]:
    return {"url": f"/v1/pose{query}", "content": content, "headers": {"Content-Type": kind}}
