"""Triton alone: the very tensors that the gateway sends, by NVIDIA's own client, and nothing around it.

The service's pipeline runs once for each picture over the same server and every call is noted. Workers then send
these calls again and again: no HTTP, no decoding, no crops, no suppression. Tensors lie in shared memory from the
start, where the server takes it, so that the replay does not even copy them: what the gateway reaches of this rate is
the bench's ratio.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from loadtest.closed_loop import Outcome
from loadtest.pace import Round, rate
from service.engine_choice import open_engine
from service.engines.base import Array, ModelMetadata, Models, Tensors
from service.engines.triton_tensors import large_inputs
from service.options import PoseOptions
from service.pipeline import PosePipeline
from service.settings import Settings
from service.steps import Picture

_REGION = "loadtest-tensors"
_ALIGN = 64
# A batch of other company rounds otherwise; these are pixels and scores.
_TOLERANCE = {"keypoints": 0.5, "scores": 0.01}


@dataclass(frozen=True)
class Call:
    """One request to Triton and its answer."""

    model: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Recording:
    """For each picture: its calls in their order, how many crops they posed, how many people were answered."""

    calls: list[list[Call]]
    crops: list[int]
    people: list[int]


class _Recorder(Models):
    """Passes calls on and keeps them."""

    def __init__(self, engine: Models) -> None:
        self._engine = engine
        self.calls: list[Call] = []

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        outputs = await self._engine.infer(model, inputs, timeout=timeout)
        self.calls.append(Call(model, {k: np.array(a) for k, a in inputs.items()}, outputs))
        return outputs

    async def models(self) -> list[str]:
        return await self._engine.models()

    async def metadata(self, model: str) -> ModelMetadata:
        return await self._engine.metadata(model)


def record(url: str, pictures: Sequence[bytes], options: Mapping[str, str]) -> Recording:
    """Run the pipeline over the Triton at ``url`` (host:port of gRPC) once for each picture."""
    return asyncio.run(_record(url, pictures, PoseOptions.model_validate(dict(options))))


async def _record(url: str, pictures: Sequence[bytes], options: PoseOptions) -> Recording:
    settings = Settings(engine="triton", triton_url=url)
    engine = open_engine(settings)
    pipeline = PosePipeline(engine, settings)
    recording = Recording([], [], [])
    try:
        await engine.start()
        for data in pictures:
            recorder = _Recorder(engine)
            answer = await pipeline.run([Picture(data, 1)], options, models=recorder)
            recording.calls.append(recorder.calls)
            recording.crops.append(sum(len(c.inputs["crops"]) for c in recorder.calls if "crops" in c.inputs))
            recording.people.append(len(answer.pictures[0].people))
    finally:
        await engine.close()
        pipeline.close()
    return recording


class TritonAlone:
    """Sends recorded calls. A context manager: the shared memory is there inside only."""

    def __init__(self, url: str, recording: Recording, *, shared: bool = True) -> None:
        """``shared=False`` sends every byte over gRPC."""
        self._url, self._recording = url, recording
        self._client = grpc.InferenceServerClient(url)
        self._region: Any = None
        self.shared = shared and self._share()
        self._prepared = [[(call, self._inputs(call)) for call in calls] for calls in recording.calls]

    def __enter__(self) -> TritonAlone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shared:
            self._client.unregister_system_shared_memory(_REGION)
        if self._region is not None:
            shared_memory.destroy_shared_memory_region(self._region)
        self._client.close()

    def run(self, workers: int, seconds: float, *, lead_in: float = 0.5) -> Outcome:
        """Load for ``lead_in + seconds``; a latency is that of all calls of a picture, one after the other."""
        clock, outcome = Round(seconds, workers, lead_in), Outcome()
        threads = [threading.Thread(target=self._work, args=(k, workers, clock, outcome)) for k in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.rate = rate(clock.moments, workers)
        return outcome

    def _work(self, number: int, workers: int, clock: Round, outcome: Outcome) -> None:
        turn = number * len(self._prepared) // workers  # workers begin at different pictures
        with grpc.InferenceServerClient(self._url) as client:
            while clock.goes_on():
                calls = self._prepared[turn % len(self._prepared)]
                turn += 1
                sent = time.perf_counter()
                try:
                    answers = [client.infer(call.model, inputs) for call, inputs in calls]
                except InferenceServerException as error:
                    outcome.failures.append(str(error))
                    time.sleep(0.1)
                    continue
                received = time.perf_counter()
                outcome.posted += 1
                if clock.completed():
                    outcome.latencies.append(received - sent)
                outcome.failures += [
                    reason
                    for (call, _), answer in zip(calls, answers, strict=True)
                    for reason in _differences(call, answer)
                ]

    def _share(self) -> bool:
        """Put all large tensors into one region; False where the server takes none."""
        size = sum(_aligned(a.nbytes) for calls in self._recording.calls for c in calls for a in c.inputs.values())
        self._region = shared_memory.create_shared_memory_region(_REGION, f"/{_REGION}", size)
        try:
            self._client.register_system_shared_memory(_REGION, f"/{_REGION}", size)
        except InferenceServerException:
            return False
        self._offset = 0
        return True

    def _inputs(self, call: Call) -> list[grpc.InferInput]:
        prepared, large = [], large_inputs(call.inputs)  # as the gateway's engine does it
        for name, array in call.inputs.items():
            tensor = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            if self.shared and name in large:
                shared_memory.set_shared_memory_region(self._region, [array], offset=self._offset)
                tensor.set_shared_memory(_REGION, array.nbytes, self._offset)
                self._offset += _aligned(array.nbytes)
            else:
                tensor.set_data_from_numpy(array)
            prepared.append(tensor)
        return prepared


def _differences(call: Call, answer: Any) -> list[str]:
    """Where an answer is not the recorded one, in words."""
    reasons = []
    for name, expected in call.outputs.items():
        got = answer.as_numpy(name)
        if got is None or got.shape != expected.shape:
            reasons.append(f"{call.model}: {name} is {None if got is None else got.shape}, not {expected.shape}")
        elif name in _TOLERANCE and np.abs(got - expected).max(initial=0) > _TOLERANCE[name]:
            reasons.append(f"{call.model}: {name} differs by {np.abs(got - expected).max():.3f}")
    return reasons


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
