"""The fuzz, short; and that it notices what it is there for."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.corpus import Specimen, corpus
from loadtest.fuzz import cap_address_space, fault, fuzz
from loadtest.mutations import SOUND, Input, make_input
from loadtest.wire import Reply
from tests.conftest import ROOT
from tests.loadtest.test_wire import read, server


@pytest.fixture(scope="module")
def specimens() -> list[Specimen]:
    return corpus()


def test_the_corpus_has_every_kind(specimens: list[Specimen]) -> None:
    names = " | ".join(one.name for one in specimens)
    for kind in (
        *(f"EXIF {k}" for k in range(1, 10)),
        *("progressive", "CMYK", "16 bits", "ICC", "animated GIF", "animated PNG", "animated WebP", "1x1", "65535"),
        *("nothing", "PNG, P", "PNG, 1", "900 million", "300 scans"),
    ):
        assert kind in names, kind
    assert len({one.name for one in specimens}) == len(specimens)


def test_an_input_is_the_same_every_time_and_no_two_are(specimens: list[Specimen]) -> None:
    inputs = [make_input(specimens, 1, number) for number in range(400)]
    again = corpus()
    assert inputs == [make_input(again, 1, number) for number in range(400)]
    assert len({one.request for one in inputs}) > 340
    assert make_input(specimens, 2, 399) != inputs[399]
    assert [one.name for one in inputs[: len(specimens)]] == [one.name for one in specimens]


@pytest.mark.slow
def test_the_service_stands_it(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.fuzz", "--inputs", "400", "--seed", "3", "--failures", str(tmp_path)]
    environment = {**os.environ, "TRITONPOSE_REPOSITORY": str(repository)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["inputs"] == 400 and told["failures"] == told["server_errors"] == 0 and told["alive"]
    assert {"200", "400", "413", "415", "422"} <= set(told["statuses"])
    assert list(tmp_path.iterdir()) == []
    if sys.platform == "linux":
        assert told["address_space_mb"] > told["peak_mb"] > 50


def test_unsound_answers_are_noticed() -> None:
    given = Input("x", b"", SOUND)
    problem = {"type": "/problems/x", "title": "x", "status": 400, "detail": "x"}
    told = {"content-type": "application/problem+json"}
    people = {"annotations": [{"keypoints": [1, 2, 2], "score": 0.5}]}

    def verdict(status: int, body: object, headers: dict[str, str] | None = None) -> str | None:
        return fault(
            given, Reply(status, headers or {"content-type": "application/json"}, json.dumps(body).encode(), 0)
        )

    assert verdict(400, problem, told) is None
    assert verdict(200, people) is None
    assert verdict(200, [{"keypoints": [1, 2, 0.5], "score": 0.5}]) is None
    assert "HTTP 500" in (verdict(500, problem, told) or "")
    assert "without a problem" in (verdict(400, problem) or "")
    assert "without a problem" in (verdict(415, problem, told) or "")  # says another status than it has
    people["annotations"][0]["score"] = float("nan")
    assert "finite" in (verdict(200, people) or "")
    assert "cannot be read" in (verdict(200, {"people": []}) or "")
    assert fault(Input("x", b"", frozenset({413})), Reply(200, {}, b"[]", 0)) is not None


async def test_a_server_that_breaks_off_fails_and_the_input_is_named(specimens: list[Specimen]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)

    async with server(handle) as url:
        found = await fuzz(url, specimens, 0, [7, 8], callers=1)
    # The second is not sent: nobody is alive to answer it.
    assert found.statuses == {0: 1}
    assert [number for number, _ in found.failures] == [7]
    assert specimens[7].name in found.failures[0][1]


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_the_cap_holds() -> None:
    program = "import sys; print('up', flush=True); sys.stdin.readline(); bytearray(300_000_000)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        limit = cap_address_space(process.pid, 100)
        assert limit is not None and limit > 100
        _, errors = process.communicate(b"\n", timeout=60)
    assert process.returncode == 1 and b"MemoryError" in errors
