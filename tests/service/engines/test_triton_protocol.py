"""What a tritonserver does rarely or not at all here, played by a gRPC server of the same protocol in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from deploy.triton.server import Ports
from service.engines import triton, triton_memory, triton_server
from service.engines.triton import TritonEngine, TritonSettings
from service.errors import DeadlineExceeded, EngineUnavailable, InferenceFailed, Overloaded, ServiceError

LARGE = np.zeros((1, 3, 8192), np.float32)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model ``m``: ``y = x`` of rows [3, 8192], after ``delay`` seconds, or the ``failures`` in their order."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.delay = 0.0
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.calls: list[Any] = []
        self.seconds_left: list[float | None] = []
        self.running = self.most_running = 0
        self.takes_regions = True
        self.regions: set[str] = set()
        self.width = 8192
        self.stands_still = self.stopping = False
        self.newest: list[Any] = []

    async def start(self) -> None:
        self._server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        if self.stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Server not ready")
        while self.stands_still:
            await asyncio.sleep(0.02)
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        entry = service_pb2.RepositoryIndexResponse.ModelIndex(name="m", version="1", state="READY")
        return service_pb2.RepositoryIndexResponse(models=[entry, *self.newest])

    def list_newest(self, state: str, reason: str = "") -> None:
        """Version 2 in the list of models, beside version 1 that answers."""
        entry = service_pb2.RepositoryIndexResponse.ModelIndex(name="m", version="2", state=state, reason=reason)
        self.newest = [entry]

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        one = {"name": "x", "data_type": "TYPE_FP32", "dims": [3, 8192]}
        config = model_config_pb2.ModelConfig(
            name="m", platform="onnxruntime_onnx", max_batch_size=4, input=[one], output=[{**one, "name": "y"}]
        )
        return service_pb2.ModelConfigResponse(config=config)

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        if not self.takes_regions:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "client shared memory is disabled")
        self.regions.add(request.name)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.regions.discard(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        answer = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            answer.regions[name].name = name
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        self.seconds_left.append(context.time_remaining())
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(self.delay)
            while self.stands_still:
                await asyncio.sleep(0.02)
        finally:
            self.running -= 1
        if self.failures:
            await context.abort(*self.failures.pop(0))
        (tensor,) = request.inputs
        region = tensor.parameters["shared_memory_region"].string_param
        if region and region not in self.regions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{region}'")
        data = (triton_memory.FOLDER / region).read_bytes() if region else request.raw_input_contents[0]
        output = service_pb2.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32")
        output.shape.extend([tensor.shape[0], 3, self.width])
        size = tensor.shape[0] * 3 * self.width * 4
        return service_pb2.ModelInferResponse(
            model_name="m", model_version="1", outputs=[output], raw_output_contents=[data[:size]]
        )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(Ports.free().grpc)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def engine(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(server.address, TritonSettings(**getattr(request, "param", {})))
    await engine.start()
    yield engine
    await engine.close()


def crops(count: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(count).random((count, 3, 8192), np.float32)}


async def test_the_deadline_goes_with_the_call(engine: TritonEngine, server: Server) -> None:
    await engine.infer("m", crops(1), timeout=7)
    assert 6 < server.calls[0].parameters["timeout"].int64_param / 1e6 <= 7
    assert server.seconds_left[0] is not None
    assert 5 < server.seconds_left[0] <= 7.1
    await engine.infer("m", crops(1))
    assert "timeout" not in server.calls[1].parameters


@pytest.mark.parametrize("engine", [{"concurrency": 2}], indirect=True)
async def test_no_more_calls_at_a_time_than_the_setting_says(engine: TritonEngine, server: Server) -> None:
    """Also when one request has many parts; those that wait here hold no copies and keep their deadlines."""
    server.delay = 0.1
    inputs = crops(30)
    np.testing.assert_array_equal((await engine.infer("m", inputs, timeout=20))["y"], inputs["x"])
    assert (server.most_running, len(server.calls)) == (2, 8)
    server.delay = 1.0
    late = asyncio.ensure_future(engine.infer("m", crops(30), timeout=0.3))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await late
    assert time.monotonic() - began < 0.8
    server.delay = 0
    await asyncio.gather(*[engine.infer("m", crops(1), timeout=5) for _ in range(6)])


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        ("UNAVAILABLE", "[request id: 1] in ensemble 'e', Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped", EngineUnavailable),
        ("UNAVAILABLE", "Socket closed", EngineUnavailable),
        ("UNKNOWN", "Stream removed", EngineUnavailable),
        ("CANCELLED", "", EngineUnavailable),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", EngineUnavailable),
        ("INTERNAL", "onnx runtime error 2", InferenceFailed),
        ("INVALID_ARGUMENT", "unexpected shape for input 'x'", InferenceFailed),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", EngineUnavailable),
    ],
)
async def test_errors_are_told_for_what_they_are_and_computed_once(
    engine: TritonEngine, server: Server, code: str, text: str, error: type[ServiceError]
) -> None:
    server.failures = [(grpc.StatusCode[code], text)]
    with pytest.raises(error, match=r"'m'|Triton at"):
        await engine.infer("m", crops(1), timeout=20)
    assert len(server.calls) == 1, "what a server may have computed is not sent again"
    await engine.infer("m", crops(1), timeout=20)
    assert engine.transport.retries == 0


async def test_what_was_never_sent_is_sent_again(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the watch has noticed; with more patience than in earnest, for machines that are busy."""
    monkeypatch.setattr(triton, "_RETRY_SECONDS", 10.0)
    assert engine._server._watch is not None
    engine._server._watch.cancel()
    await server.stop()
    call = asyncio.ensure_future(engine.infer("m", crops(1), timeout=20))
    await asyncio.sleep(0.02)
    await server.start()
    await call
    assert len(server.calls) == 1
    assert engine.transport.retries > 0


@pytest.mark.parametrize("timeout", [None, 30.0, 0.2])
async def test_a_server_that_is_gone_is_told_within_a_second(
    engine: TritonEngine, server: Server, timeout: float | None
) -> None:
    await server.stop()
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=server.address):
        await engine.infer("m", crops(1), timeout=timeout)
    assert time.monotonic() - began < 0.9
    await asyncio.sleep(0.5)
    assert engine.unavailable is not None
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match="Connection refused"):
        await engine.infer("m", crops(1), timeout=timeout)
    assert time.monotonic() - began < 0.1, "known by now"
    await server.start()
    while engine.unavailable is not None:
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.05)
    await engine.infer("m", crops(1), timeout=20)


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> float:
    """A watch that is ten times as quick; gives the seconds after which it calls a server silent, with room."""
    monkeypatch.setattr(triton_server, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(triton_server, "_ANSWER_SECONDS", 0.5)
    return 5.0


@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_a_server_that_answers_nothing_keeps_no_call(
    quick_polls: float, engine: TritonEngine, server: Server, timeout: float | None
) -> None:
    """A host that is cut off, a process that stands still: nothing is refused, nothing comes. Then it goes on."""
    server.stands_still = True
    began = time.monotonic()
    calls = [asyncio.ensure_future(engine.infer("m", crops(1), timeout=timeout)) for _ in range(40)]
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert time.monotonic() - began < quick_polls
    assert {type(one) for one in outcomes} == {EngineUnavailable}
    assert all("does not answer" in str(one) and server.address in str(one) for one in outcomes)
    assert len(server.calls) == 32, "those that waited for their turn were not sent to it"
    assert engine.transport.calls["m", "engine-unavailable"] == 40
    server.stands_still = False
    while engine.unavailable is not None:
        assert time.monotonic() - began < 20
        await asyncio.sleep(0.02)
    inputs = crops(2)
    np.testing.assert_array_equal((await engine.infer("m", inputs, timeout=timeout))["y"], inputs["x"])


async def test_a_server_that_stops_finishes_what_it_has(
    quick_polls: float, engine: TritonEngine, server: Server
) -> None:
    """It says that it is not ready any more; that is no silence."""
    server.delay = 2.0
    inputs = crops(1)
    call = asyncio.ensure_future(engine.infer("m", inputs, timeout=60))
    await asyncio.sleep(0.2)
    server.stopping = True
    while engine.unavailable is None:
        await asyncio.sleep(0.02)
    np.testing.assert_array_equal((await call)["y"], inputs["x"])


async def test_a_version_that_is_tried_again_stays_refused(
    quick_polls: float, engine: TritonEngine, server: Server
) -> None:
    """Under ``poll`` Triton tries a broken version each second, and calls it LOADING meanwhile."""
    refused = "m version 2: no graph"

    async def told(reason: str | None) -> None:
        end = time.monotonic() + 20
        while engine.refused != reason:
            assert time.monotonic() < end, engine.refused
            await asyncio.sleep(0.02)

    server.list_newest("LOADING")
    await asyncio.sleep(1)
    assert engine.refused is None, "it may turn out well"
    server.list_newest("UNAVAILABLE", "no graph")
    await told(refused)
    server.list_newest("LOADING")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert engine.refused == refused
        await asyncio.sleep(0.02)
    assert engine._server.catalogue.index.models[1].state == "LOADING", "the watch has seen it"
    server.list_newest("UNAVAILABLE", "no graph either")
    await told("m version 2: no graph either")
    server.list_newest("READY")
    await told(None)
    assert (await engine.metadata("m")).versions == (1, 2)


async def test_servers_of_one_name_share_the_calls_and_one_may_go(server: Server) -> None:
    """Behind a headless Kubernetes service: gRPC's own default would send everything to one of them."""
    other = Server(Ports.free().grpc)
    await other.start()
    engine = TritonEngine(f"ipv4:{server.address},{other.address}")
    await engine.start()
    try:
        await asyncio.sleep(0.5)
        for _ in range(20):
            await engine.infer("m", crops(1), timeout=20)
        assert min(len(server.calls), len(other.calls)) >= 8
        assert not engine.transport.shared_memory, "regions are known to one server only"
        await other.stop()
        before = len(server.calls)
        for _ in range(10):
            await engine.infer("m", crops(1), timeout=20)
        assert len(server.calls) == before + 10
    finally:
        await engine.close()
        await other.stop()


async def test_an_answer_of_another_shape_is_not_passed_on(engine: TritonEngine, server: Server) -> None:
    server.width = 4096
    with pytest.raises(InferenceFailed, match=r"answered 'y' as float32 \[2, 3, 4096\], its config says .*8192\]"):
        await engine.infer("m", crops(2))


async def test_a_server_that_takes_no_shared_memory(server: Server) -> None:
    server.takes_regions = False
    engine = TritonEngine(server.address)
    await engine.start()
    try:
        inputs = crops(3)
        np.testing.assert_array_equal((await engine.infer("m", inputs))["y"], inputs["x"])
        assert not engine.transport.shared_memory
        assert engine.transport.sent_bytes == {"grpc": inputs["x"].nbytes}
    finally:
        await engine.close()


async def test_a_server_that_forgot_the_regions(engine: TritonEngine, server: Server) -> None:
    """Restarted between two polls: nobody notices, and shared memory is used again."""
    assert engine.transport.shared_memory
    server.regions.clear()
    inputs = crops(3)
    for _ in range(2):
        np.testing.assert_array_equal((await engine.infer("m", inputs))["y"], inputs["x"])
    assert [bool(call.raw_input_contents) for call in server.calls] == [False, True, False]


async def test_regions_are_used_again_and_let_go(engine: TritonEngine, server: Server) -> None:
    for count in (1, 4, 1, 4, 2, 3):
        inputs = crops(count)
        np.testing.assert_array_equal((await engine.infer("m", inputs))["y"], inputs["x"])
    assert len(server.regions) == 1, "half a megabyte holds each of them"
    await engine.close()
    assert server.regions == set()
    assert not [name for name in os.listdir(triton_memory.FOLDER) if name.startswith(f"tritonpose-{os.getpid()}-")]


async def test_a_full_memory_makes_tensors_travel(
    engine: TritonEngine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_memory, "_MOST_BYTES", 2**19)
    server.delay = 0.05
    answers = await asyncio.gather(*[engine.infer("m", crops(4)) for _ in range(3)])
    for answer in answers:
        np.testing.assert_array_equal(answer["y"], crops(4)["x"])
    assert sorted(engine.transport.sent_bytes) == ["grpc", "shared_memory"]
    assert engine.transport.shared_memory


async def test_what_a_killed_process_left_is_removed(server: Server) -> None:
    """Files of the living stay, also when another process looks; those of the dead go, at the server too."""
    script = """
        import sys, time
        from service.engines.triton_memory import _create
        print(_create(4096).name, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        path = triton_memory.FOLDER / name
        triton_memory.remove_abandoned()
        assert path.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    server.regions.add(name)
    engine = TritonEngine(server.address)
    await engine.start()
    assert not path.exists()
    assert name in server.regions, "it may still read it"
    for _ in range(60):
        await engine._regions.polled(engine._server.client)
    assert name not in server.regions
    assert len(server.regions) == 1
    await engine.close()


def listening() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


async def test_what_is_wrong_with_an_address_is_told_with_the_address(server: Server) -> None:
    """Within two seconds, so that the reason in readiness is the right one."""
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    web = await asyncio.start_server(_speak_http, "127.0.0.1", 0)
    silent, silent_address = listening()
    wrong = {
        f"127.0.0.1:{Ports.free().grpc}": "cannot be reached: .*Connection refused",
        f"127.0.0.1:{port}": "no Triton server's gRPC port",
        f"127.0.0.1:{web.sockets[0].getsockname()[1]}": "is it the HTTP port?",
        "nowhere.invalid:8001": "cannot be reached: .*nowhere.invalid",
        silent_address: "cannot be reached|does not answer",
    }
    try:
        for address, reason in wrong.items():
            engine = TritonEngine(address)
            for _ in range(2):  # the second try has the same to say
                began = time.monotonic()
                with pytest.raises(EngineUnavailable, match=f"Triton at {address}.*({reason})"):
                    await engine.start()
                assert time.monotonic() - began < 2
            await engine.close()
    finally:
        silent.close()
        web.close()
        await other.stop(None)


async def _speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


def test_the_embedded_engine_does_not_load_the_client() -> None:
    script = """
        import sys
        from service.engine_choice import open_engine
        from service.settings import Settings
        open_engine(Settings())
        print("tritonclient.grpc.aio" in sys.modules, "service.engines.triton" in sys.modules)
        open_engine(Settings(engine="triton"))
        print("tritonclient.grpc.aio" in sys.modules, "service.engines.triton" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]
