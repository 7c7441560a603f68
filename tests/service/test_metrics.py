"""What Prometheus sees: figures that agree with what happened, under names that docs, dashboard and alerts use."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric

from service.admission import Admission
from service.engine_metrics import Steps
from service.engines.base import Engine
from service.engines.embedded import EmbeddedEngine
from service.engines.fake import FakeEngine
from service.engines.statistics import ModelStatistics
from service.engines.triton import TritonEngine
from service.metrics import REASONS, STATES, Metrics, State
from service.problems import problem_types
from service.settings import Settings
from tests.conftest import ROOT
from tests.loadtest.stand_in import write_repository
from tests.service import wire
from tests.service.marked_people import Card, card_engine, encode, paint
from tests.service.running import serving

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PHOTO = encode(paint([Card(20, 30, 60, 120)]))
NAME = re.compile(r"\b(?:tritonpose|process|python)_[a-z0-9_]+")


def shown(engine: Engine) -> dict[str, Metric]:
    """Families of all metrics of a service over an engine, by name without ``_total``."""
    metrics = Metrics()
    metrics.watch(Admission(Settings()), engine)
    metrics.watch_state(lambda: "ready")
    metrics.refresh()
    return {family.name: family for family in metrics.registry.collect()}


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    return shown(EmbeddedEngine(Path("models"))) | shown(TritonEngine("localhost:1"))


def base(name: str) -> str:
    """The family of a sample."""
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


def test_every_metric_is_explained_and_every_explained_one_is_there(families: dict[str, Metric]) -> None:
    table = OPERATIONS.partition("## Metrics")[2].partition("\n###")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {base(name) for name in told} == set(families)
    assert all(name.endswith("_total") == (families[base(name)].type == "counter") for name in told)


def test_docs_dashboard_and_alerts_name_only_metrics_that_are_there(families: dict[str, Metric]) -> None:
    documents = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "deploy/prometheus").glob("*.yml")]
    texts = {path.name: path.read_text() for path in documents}
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tritonpose.json").read_text())
    texts["dashboard"] = "\n".join(
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    )
    named = {(where, name) for where, text in texts.items() for name in NAME.findall(text)}
    assert len({name for where, name in named if where == "dashboard"}) > 20
    python = ("python_", "process_")  # other words of docs begin so, too
    unknown = {(where, name) for where, name in named if base(name) not in families and name not in families}
    assert not {(where, name) for where, name in unknown if not name.startswith(python)}


def test_the_dashboard_shows_all_that_the_docs_say(families: dict[str, Metric]) -> None:
    """What is not on it is looked at by nobody, until it is too late."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tritonpose.json").read_text())
    asked = "\n".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    # What the dashboard asks for by the name of a rule.
    for rule in re.finditer(r"- record: (\S+)\n\s+expr: (.+)", (ROOT / "deploy/prometheus/rules.yml").read_text()):
        asked += f"\n{rule[2]}" if rule[1] in asked else ""
    shown = {base(name) for name in NAME.findall(asked)}
    assert {name for name in families if name.startswith("tritonpose_")} <= shown
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= shown


def test_reasons_of_the_docs_are_counted_and_others_do_not_pile_up() -> None:
    table = OPERATIONS.partition("### Reasons")[2].partition("\n###")[0]
    told = {word for row in table.splitlines() for word in re.findall(r"`([a-z-]+)`", row.partition("|")[2][:200])}
    assert told and told <= REASONS
    assert set(problem_types()) <= REASONS
    metrics = Metrics()
    before = len(metrics.text().splitlines())
    for reason in ("queue-full", "made up 1", "made up 2"):
        metrics.rejected(reason)
    assert len(metrics.text().splitlines()) == before
    assert 'tritonpose_rejected_total{reason="other"} 2.0' in metrics.text().decode()
    assert 'tritonpose_rejected_total{reason="queue-full"} 1.0' in metrics.text().decode()


class Counting(FakeEngine):
    """An engine with figures of its own."""

    counted: ModelStatistics
    serves: dict[str, int]

    def statistics(self) -> dict[str, ModelStatistics]:
        return {"pose": self.counted}

    def versions(self) -> dict[str, int]:
        return self.serves


def counting() -> Counting:
    engine = card_engine()
    engine.__class__ = Counting
    assert isinstance(engine, Counting)
    engine.counted, engine.serves = ModelStatistics(), {"pose": 1}
    return engine


def test_what_the_engine_counts_is_carried_over_once() -> None:
    engine, metrics = counting(), Metrics()
    metrics.watch(Admission(Settings()), engine)
    for runs in (Counter({1: 2, 5: 1}), Counter({1: 2, 5: 4}), Counter({1: 2, 5: 4}), Counter({200: 1})):
        engine.counted.batch_sizes = runs
        engine.counted.requests = sum(runs.values())
        metrics.refresh()
        metrics.refresh()
    text = metrics.text().decode()
    # 2 of 1 row and 4 of 5; then the counters began anew, with one of 200.
    assert 'tritonpose_engine_requests_total{model="pose"} 7.0' in text
    for bound, runs in (("1.0", 2), ("4.0", 2), ("6.0", 6), ("128.0", 6), ("+Inf", 7)):
        assert f'tritonpose_engine_batch_bucket{{le="{bound}",model="pose"}} {float(runs)}' in text
    assert 'tritonpose_engine_batch_sum{model="pose"} 222.0' in text


def test_the_version_that_answers_is_the_one_with_a_1() -> None:
    engine, metrics = counting(), Metrics()
    metrics.watch(Admission(Settings()), engine)
    metrics.refresh()
    engine.serves = {"pose": 2, "new": 1}
    metrics.refresh()
    engine.refused = "pose: no such file"
    metrics.refresh()
    metrics.refresh()
    text = metrics.text().decode()
    assert 'tritonpose_model_info{model="pose",version="1"} 0.0' in text
    assert 'tritonpose_model_info{model="pose",version="2"} 1.0' in text
    assert 'tritonpose_model_version{model="pose"} 2.0' in text
    assert 'tritonpose_updates_total{outcome="taken"} 1.0' in text
    assert 'tritonpose_updates_total{outcome="refused"} 1.0' in text
    assert "tritonpose_update_refused 1.0" in text


async def test_a_crowd_of_scrapes_costs_as_much_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask; what each costs is the interpreter's time, which requests need."""
    metrics, made = Metrics(), 0

    def slow() -> bytes:
        nonlocal made
        made += 1
        time.sleep(0.1)
        return f"text {made}".encode()

    monkeypatch.setattr(metrics, "text", slow)
    first = asyncio.ensure_future(metrics.scrape())
    await asyncio.sleep(0.01)
    first.cancel()  # this caller goes, the others want it still
    texts = await asyncio.gather(*(metrics.scrape() for _ in range(50)))
    assert (set(texts), made) == ({b"text 1"}, 1)
    assert await metrics.scrape() == b"text 1"
    await asyncio.sleep(1.05)
    assert await metrics.scrape() == b"text 2"


async def test_one_scrape_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "text", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await metrics.scrape()
    assert b"tritonpose_ready" in await metrics.scrape()


async def test_the_time_that_a_caller_takes_to_send_is_not_the_services() -> None:
    """Or anybody who sends slowly wakes somebody: the alerts go by this histogram."""
    async with wire.serving(Settings(cpu_threads=1)) as (app, port):
        head = f"POST /v1/pose HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.monotonic()
        writer.write(head.encode() + PHOTO[:100])
        await asyncio.sleep(2)
        writer.write(PHOTO[100:])
        assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
        waited = time.monotonic() - began
        writer.close()
        text = app.state.service.metrics.text().decode()
        told = re.search(r'^tritonpose_request_seconds_sum{route="/v1/pose"} (\S+)', text, re.MULTILINE)
        assert told and 0 < float(told.group(1)) < waited - 1.9


async def test_a_caller_who_gives_no_time_makes_no_failure_of_the_service() -> None:
    """Every 504 of the service's own making counts; those that anybody can have for the asking do not."""
    engine = card_engine()
    async with wire.serving(Settings(cpu_threads=1, deadline_seconds=3), engine) as (app, port):
        engine.delay = 30
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for seconds in ("0.2", "1"):
                headers = {"X-Request-Timeout": seconds}
                assert (await client.post("/v1/pose", files={"image": PHOTO}, headers=headers)).status_code == 504
        text = app.state.service.metrics.text().decode()
        assert 'tritonpose_rejected_total{reason="caller-deadline"} 1.0' in text
        assert 'tritonpose_rejected_total{reason="deadline-exceeded"} 1.0' in text


def test_every_reason_is_one_that_something_gives() -> None:
    """A reason that nothing counts is a series that never moves, and a line in the docs that misleads."""
    sources = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py") if path.name != "metrics.py")
    assert not {reason for reason in REASONS - set(problem_types()) - {"other"} if f'"{reason}"' not in sources}


@pytest.mark.slow
def test_refusals_before_there_is_a_request_are_counted_too(tmp_path: Path) -> None:
    with serving(write_repository(tmp_path / "models"), tmp_path / "log") as running:
        assert httpx.get(running.address, headers={"X-Long": "x" * 40_000}, timeout=30).status_code == 431
        assert running.metric('tritonpose_rejected_total{reason="head-too-large"}') == 1


@pytest.mark.parametrize("now", STATES)
def test_a_process_is_in_one_state(now: State) -> None:
    metrics = Metrics()
    metrics.watch_state(lambda: now)
    metrics.refresh()
    text = metrics.text().decode()
    assert re.findall(r'tritonpose_workers\{state="(\w+)"\} 1\.0', text) == [now]
    assert f"tritonpose_ready {float(now == 'ready')}" in text


def test_steps_begin_anew_where_a_number_falls() -> None:
    steps = Steps()
    assert [steps.of("a", now) for now in (3, 3, 5, 2, 2)] == [3, 0, 2, 2, 0]
    assert steps.of("b", 1) == 1
