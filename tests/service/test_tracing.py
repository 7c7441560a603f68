"""Traces at a collector: a request and its stages as they were, in the caller's trace; and none of it unless asked for.

The collector is a small server that takes OTLP over HTTP, as protobuf (ours) and as JSON (Triton's).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import opentelemetry._logs
import opentelemetry.metrics
import opentelemetry.trace
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from service.scenes import render_scene
from service.tracing import open_tracing, trace_id_of
from tests.conftest import ROOT
from tests.loadtest.stand_in import write_repository
from tests.service.marked_people import encode
from tests.service.running import serving

PHOTO = encode(render_scene(5, size=(320, 240), people=2).image, ".jpg")
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = {
    *("read", "parse", "queue", "decode", "letterbox", "detector"),
    *("suppress", "crop", "pose", "people", "encode"),
}


@dataclass
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, object] = field(default_factory=dict)


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.spans: list[Span] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def wait_for(self, *names: str, seconds: float = 60) -> list[Span]:
        """All spans, once there are some of these names."""
        end = time.monotonic() + seconds
        while not set(names) <= {span.name for span in self.spans}:
            assert time.monotonic() < end, sorted({span.name for span in self.spans})
            time.sleep(0.05)
        return list(self.spans)


class _Export(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_json = "json" in self.headers["Content-Type"]
        self.server.spans += _read_json(json.loads(body)) if is_json else _read_protobuf(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _read_protobuf(body: bytes) -> list[Span]:
    spans = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                spans.append(Span(about["service.name"], span.name, *ids, *times, attributes))
    return spans


def _read_json(body: dict[str, list[dict[str, list[dict[str, list[dict[str, str]]]]]]]) -> list[Span]:
    return [
        Span(
            *("triton", span["name"], span["traceId"], span["spanId"], span.get("parentSpanId", "")),
            *(int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])),
        )
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


def variables(collector: Collector) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def ask(address: str, **headers: str) -> httpx.Response:
    answer = httpx.post(f"{address}/v1/pose", files={"image": PHOTO}, headers=headers, timeout=60)
    assert answer.status_code == 200
    return answer


@pytest.mark.slow
def test_stages_are_spans_below_the_request_in_the_callers_trace(
    collector: Collector, repository: Path, tmp_path: Path
) -> None:
    logged = {"TRITONPOSE_LOG_FORMAT": "json", "TRITONPOSE_API_KEYS": "a-secret-key-of-32-characters-or-more"}
    with serving(repository, tmp_path / "log", variables=variables(collector) | logged) as running:
        key = {"X-API-Key": "a-secret-key-of-32-characters-or-more"}
        answer = ask(running.address, traceparent=f"00-{TRACE}-{CALLER}-01", **key)
        spans = collector.wait_for("POST /v1/pose")
        ask(running.address, traceparent=f"00-{TRACE[::-1]}-{CALLER}-00", **key)  # its caller does not record it
        ask(running.address, traceparent="00-nonsense", **key)
        refused = httpx.post(f"{running.address}/v1/pose", content=b"text", headers={"Content-Type": "image/png"} | key)
        assert refused.status_code == 400
        running.process.terminate()
        assert running.process.wait(30) == 0
        lines = [json.loads(line) for line in running.lines()]
    (request,) = [span for span in spans if span.name == "POST /v1/pose"]
    stages = [span for span in spans if span.trace == TRACE and span is not request]
    assert (request.trace, request.parent, request.service) == (TRACE, CALLER, "tritonpose")
    assert {span.parent for span in stages} == {request.id}
    assert {span.name for span in stages} == STAGES
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["tritonpose.request_id"] == answer.headers["x-request-id"]
    # What a trace shows is what Server-Timing says, and lies within the request.
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert set(told) == STAGES | {"total"}
    assert float(told.pop("total")) < (request.end - request.start) / 1e6 + 1
    for name, milliseconds in told.items():
        parts = [span for span in stages if span.name == name]
        assert sum(span.end - span.start for span in parts) / 1e6 == pytest.approx(float(milliseconds), abs=0.02)
        assert all(request.start - 10**6 <= span.start <= span.end <= request.end + 10**6 for span in parts)
    # Sent before the process ended; the trace that its caller does not record is not there, the others are new.
    everything = collector.spans
    assert TRACE[::-1] not in {span.trace for span in everything}
    assert len({span.trace for span in everything if span.name == "POST /v1/pose"}) == 3
    answered = [line for line in lines if line.get("route") == "/v1/pose"]
    assert answered[0]["trace_id"] == TRACE
    assert "secret" not in json.dumps(lines), "a key's name may be logged, the key never"


@pytest.mark.slow
def test_tritons_spans_lie_below_the_stage_that_called_it(
    collector: Collector, triton_installation: Installation, tmp_path: Path
) -> None:
    arguments = ["--trace-config", "mode=opentelemetry", "--trace-config", "rate=0", "--trace-config"]
    arguments += ["level=TIMESTAMPS", "--trace-config", f"opentelemetry,url={collector.endpoint}/v1/traces"]
    arguments += ["--trace-config", "opentelemetry,bsp_schedule_delay=100"]
    repository = ROOT / "model_repository"
    with TritonServer(repository, installation=triton_installation, arguments=arguments) as server:
        options = ("--engine", "triton", "--triton-url", server.grpc_url)
        with serving(repository, tmp_path / "log", *options, variables=variables(collector)) as running:
            ask(running.address, traceparent=f"00-{TRACE}-{CALLER}-01")
            spans = [span for span in collector.wait_for("POST /v1/pose", "InferRequest") if span.trace == TRACE]
            end = time.monotonic() + 30
            while not {"detector", "pose"} <= {
                called.name
                for span in spans
                if span.service == "triton"
                for called in spans
                if called.id == span.parent
            }:
                assert time.monotonic() < end, spans
                time.sleep(0.1)
                spans = [span for span in collector.spans if span.trace == TRACE]


@pytest.mark.slow
def test_a_collector_that_is_gone_costs_callers_nothing_and_the_end_little(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) as on:
        ask(on.address)
        on.process.terminate()
        assert on.process.wait(30) == 0


@pytest.mark.slow
def test_without_the_packages_the_service_starts_and_says_what_is_missing() -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from service.app import create_app
create_app()
print(sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk")))
"""
    for endpoint, said in (("", ""), ("http://localhost:4318", "tritonpose[tracing]")):
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[]\n"
        assert said in done.stderr and bool(said) == bool(done.stderr)


@pytest.mark.parametrize(
    "unasked",
    [
        {},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_there_are_no_traces_unless_asked_for(monkeypatch: pytest.MonkeyPatch, unasked: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    if unasked:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in unasked.items():
        monkeypatch.setenv(name, value)
    assert open_tracing() is None


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (f"00-{TRACE}-{CALLER}-01", True),
        (f"cc-{TRACE}-{CALLER}-01-what-later-versions-may-say", True),
        (f"ff-{TRACE}-{CALLER}-01", False),
        (f"00-{'0' * 32}-{CALLER}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{CALLER}-01", False),
        ('"}{', False),
    ],
)
def test_trace_ids_of_callers(header: str, known: bool) -> None:
    assert trace_id_of({"traceparent": header}) == (TRACE if known else None)


async def test_fastapis_own_telemetry_is_off(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has a global provider, it would tell of each request a second time, with query and stack."""
    asked: list[str] = []
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: asked.append("tracer"))
    monkeypatch.setattr(opentelemetry.metrics, "get_meter_provider", lambda: asked.append("meter"))
    monkeypatch.setattr(opentelemetry._logs, "get_logger_provider", lambda: asked.append("logger"))
    assert (await client.get("/v1/health/live")).status_code == 200
    assert asked == []
