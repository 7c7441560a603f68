"""Is the service as well as before? Ready, right, and with nothing left over in its queue."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import httpx

from loadtest.agreement import disagreement
from loadtest.cases import Case

# What has to be zero when nobody asks: a slot, byte or pixel that is left here is one that no caller ever gets again.
HELD = (
    "tritonpose_requests_running",
    "tritonpose_requests_waiting",
    "tritonpose_queue_bytes",
    "tritonpose_queue_pixels",
    "tritonpose_queue_people",
)
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format: the sum of each name's samples."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def complaints(url: str, cases: Sequence[Case], api_key: str | None = None, *, seconds: float = 30.0) -> list[str]:
    """What is wrong with a service that has been left alone; nothing when it is well.

    Args:
        url: the service.
        cases: requests whose answers are known; each is asked once.
        api_key: its key.
        seconds: how long the queue may take to empty, and the service to be ready.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    found: list[str] = []
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        end = time.monotonic() + seconds
        while (reason := _unready(client)) and time.monotonic() < end:
            time.sleep(0.2)
        if reason:
            return [reason]
        for case in cases:
            headers = {"Content-Type": case.picture.media_type}
            answer = client.post(case.path, content=case.picture.data, headers=headers)
            if answer.status_code != 200:
                found.append(f"{case.picture.name} gets HTTP {answer.status_code}: {answer.text[:200]}")
            elif difference := disagreement(case.expected, answer.json()):
                found.append(f"{case.picture.name} {case.name}: {difference}")
        while (left := _left_over(client)) and time.monotonic() < end:
            time.sleep(0.2)
        found += left
    return found


def _unready(client: httpx.Client) -> str | None:
    try:
        answer = client.get("/v1/health/ready")
    except httpx.TransportError as error:
        return f"the service cannot be asked: {error!r}"
    return None if answer.status_code == 200 else f"not ready: {answer.text[:300]}"


def _left_over(client: httpx.Client) -> list[str]:
    figures = samples(client.get("/metrics").text)
    missing = [f"/metrics has no {name}" for name in HELD if name not in figures]
    return missing + [f"{name} is {figures[name]:g} with nobody asking" for name in HELD if figures.get(name)]
