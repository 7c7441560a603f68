"""The log: one line for each request, with what an operator asks for first, readable by people or by machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.logs import JsonFormatter, set_up
from service.settings import Settings
from tests.service.marked_people import Card, encode, paint

CARDS = (Card(20, 30, 60, 120, 0.9), Card(150, 60, 80, 140, 0.7), Card(250, 10, 50, 100, 0.5))
PHOTO = encode(paint(CARDS), ".jpg")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_a_line_for_each_request_says_what_became_of_it(
    client: httpx.AsyncClient, app: FastAPI, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(Settings(log_format="json"))
    answer = await client.post("/v1/pose", files={"image": PHOTO}, headers={"X-Request-ID": "mine"})
    await client.post("/v1/pose?max_people=0", files={"image": PHOTO})
    await client.get("/v1/health/ready")  # asked every few seconds: no line while it is well
    good, bad = [line for line in lines(capsys.readouterr().err) if line["logger"] == "service.correlation"]
    people = len(answer.json()["annotations"])
    assert people
    expected = {"request_id": "mine", "method": "POST", "route": "/v1/pose", "status": 200, "images": 1}
    assert expected.items() <= good.items()
    assert (good["people"], good["bytes_sent"]) == (people, len(answer.content))
    assert isinstance(good["bytes_received"], int) and good["bytes_received"] > len(PHOTO)
    stages = good["stages"]
    assert isinstance(stages, dict) and {"read", "decode", "detector", "pose", "encode", "total"} <= stages.keys()
    assert stages["total"] <= good["milliseconds"] + 0.001  # type: ignore[operator]
    assert (bad["status"], bad["reason"]) == (422, "invalid-option")
    assert "people" not in bad


def test_whatever_is_logged_is_one_object_a_line(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Settings(log_format="json"))
    logging.getLogger("uvicorn.error").warning('two\nlines and a "quote" of %s', "uvicorn")
    try:
        raise ValueError("deep\nbelow")
    except ValueError:
        logging.getLogger("elsewhere").exception("failed", extra={"fields": {"odd": object()}})
    first, second = lines(capsys.readouterr().err)
    assert first["message"] == 'two\nlines and a "quote" of uvicorn'
    assert (first["level"], first["logger"]) == ("warning", "uvicorn.error")
    assert "ValueError: deep\nbelow" in str(second["exception"])
    assert "object" in str(second["odd"])


def test_times_are_utc_and_sort_as_text() -> None:
    record = logging.LogRecord("name", logging.INFO, __file__, 1, "said", (), None)
    record.created, record.msecs = 1795290125.042, 42.0
    assert json.loads(JsonFormatter().format(record))["time"] == "2026-11-21T19:42:05.042Z"


def test_text_is_for_people_and_names_the_worker(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Settings(workers=2))
    logging.getLogger("service").info("said")
    written = capsys.readouterr().err
    assert written.endswith("service: said\n") and "INFO [" in written
