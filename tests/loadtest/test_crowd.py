"""The crowd of chaos and soak: it has to find a sound service sound, and to notice each way of not being so."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from dataclasses import replace

import httpx
import pytest

from loadtest import crowd as crowd_module
from loadtest.cases import Case, Checked, learn
from loadtest.crowd import Crowd, Manners, Tally
from loadtest.malformed import KINDS, malformed
from loadtest.pictures import mixed_pictures
from loadtest.server import ServiceProcess
from loadtest.wellness import HELD, complaints, samples
from loadtest.wire import Wire
from service.client import PoseClient
from tests.loadtest.test_wire import OK, read, server

BEHAVED = Manners(wrong=0, slow=0, gone=0, impatient=0)


@pytest.fixture(scope="module")
def cases(service: ServiceProcess) -> list[Case]:
    with PoseClient(service.url) as client:
        return learn(client, mixed_pictures(3, largest=640))


@pytest.mark.parametrize("kind", KINDS)
async def test_every_fault_has_its_status(service: ServiceProcess, cases: list[Case], kind: str) -> None:
    chance = random.Random(5)
    async with Wire(service.url) as wire:
        for _ in range(8):
            wrong = malformed(chance, cases[0].picture, kind)
            reply = await wire.ask(wrong.request)
            assert reply.status in wrong.statuses, reply.body
            assert reply.headers["content-type"] == "application/problem+json"


async def test_a_sound_service_is_found_sound(service: ServiceProcess, cases: list[Case]) -> None:
    async with Wire(service.url) as wire:
        crowd = Crowd(wire, cases, Manners(patience=0.05), seed=2)
        await crowd.run(6, lambda: crowd.tally.begun < 150)
    tally = crowd.tally
    assert (tally.wrong, tally.hung, tally.lost) == ([], [], [])
    assert tally.ended == tally.begun >= 150
    kinds = {kind for kind, _ in tally.outcomes}
    assert kinds == {"well-behaved", "malformed", "gone", "slow", "impatient"}
    assert tally.count("right") > 50 and tally.count("left") > 5
    assert await asyncio.to_thread(complaints, service.url, cases[:2]) == []


def test_a_request_that_never_ended_hangs_too() -> None:
    """A caller that died in the middle of one notes nothing: chaos and soak must not take that for well."""
    tally = Tally(begun=3)
    tally.outcomes["well-behaved", "right"] = 2
    assert tally.hanging == 1
    tally.outcomes["well-behaved", "hung"] = 1
    tally.hung.append("a: no answer within 60 s")
    assert tally.hanging == 1


async def test_wrong_answers_are_noticed(service: ServiceProcess, cases: list[Case]) -> None:
    moved = copy.deepcopy(cases[0].expected)
    moved["annotations"][0]["keypoints"][1] += 2
    async with Wire(service.url) as wire:
        crowd = Crowd(wire, [replace(cases[0], expected=moved)], BEHAVED)
        await crowd.run(2, lambda: crowd.tally.begun < 4)
    assert len(crowd.tally.wrong) == crowd.tally.count("wrong answer") == crowd.tally.ended >= 4
    assert "a joint 2.00 px away" in crowd.tally.wrong[0]


async def test_errors_lost_and_hung_requests_are_noticed(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd_module, "HUNG_SECONDS", 0.3)
    turns = iter(("error", "lost", "hung", "other people"))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        turn = next(turns)
        if turn == "error":
            writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif turn == "hung":
            await asyncio.sleep(1)
        elif turn == "other people":
            writer.write(OK)
        await writer.drain()

    async with server(handle) as url, Wire(url) as wire:
        crowd = Crowd(wire, cases, BEHAVED)
        await crowd.run(1, lambda: crowd.tally.begun < 4)
    outcomes = {outcome for _, outcome in crowd.tally.outcomes}
    assert outcomes == {"unexpected 500", "connection lost for nothing", "hung", "wrong answer"}
    assert len(crowd.tally.wrong) == 3 and len(crowd.tally.hung) == 1


async def test_what_was_killed_may_break_connections_and_say_503(cases: list[Case]) -> None:
    turns = iter(("503", "lost"))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        if next(turns) == "503":
            writer.write(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()

    async with server(handle) as url, Wire(url) as wire:
        crowd = Crowd(wire, cases, BEHAVED)
        crowd.unavailable = True
        await crowd.run(1, lambda: crowd.tally.begun < 2)
    assert crowd.tally.wrong == []
    assert {outcome for _, outcome in crowd.tally.outcomes} == {"503", "connection lost"}


def test_an_answer_seen_before_is_not_parsed_again_and_not_mixed_up(cases: list[Case]) -> None:
    checked, other = Checked(), replace(cases[0], expected=copy.deepcopy(cases[0].expected))
    other.expected["annotations"][0]["score"] += 0.5
    body = json.dumps(cases[0].expected).encode()
    for _ in range(2):
        assert checked.wrong(cases[0], body) is None
        assert "a score" in (checked.wrong(other, body) or "")
    assert "unreadable" in (checked.wrong(cases[0], b"{") or "")


def test_what_is_left_in_the_queue_is_a_complaint(service: ServiceProcess) -> None:
    text = '# HELP x\ntritonpose_queue_bytes 12.0\na_total{b="c d"} 1\na_total{b="e"} 2.5\n'
    assert samples(text) == {"tritonpose_queue_bytes": 12.0, "a_total": 3.5}
    figures = samples(httpx.get(f"{service.url}/metrics").text)
    assert {name: figures[name] for name in HELD} == dict.fromkeys(HELD, 0.0)
    assert "cannot be asked" in complaints("http://127.0.0.1:9", [], seconds=0)[0]


def test_mixed_pictures_are_mixed() -> None:
    pictures = mixed_pictures(12)
    assert {p.media_type for p in pictures} == {"image/jpeg", "image/png", "image/webp"}
    sizes = {p.scene.image.shape[:2] for p in pictures if p.scene is not None}
    people = {len(p.scene.people) for p in pictures if p.scene is not None}
    assert len(sizes) >= 6 and {0, 1, 6} <= people
    assert [p.data for p in mixed_pictures(3)] == [p.data for p in pictures[:3]]
    assert not {p.name for p in mixed_pictures(12, largest=640)} & {p.name for p in pictures if "1920" in p.name}
