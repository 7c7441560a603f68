"""The ``onnxruntime`` back end inside a real tritonserver: what callers of Triton get from it.

Were these to fail, a repository would behave otherwise here than with NVIDIA's own back end.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deploy.triton.installation import Installation
from deploy.triton.server import TritonServer
from tests.service.engines.repositories import FLOAT, INT64, Repository

pytestmark = pytest.mark.slow

JOINING = "dynamic_batching { max_queue_delay_microseconds: 200000 }\n"


@pytest.fixture(scope="module")
def server(triton_installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server over small models of known arithmetic."""
    repository = Repository(tmp_path_factory.mktemp("models"))
    repository.affine("joined", 2, 1, extra=JOINING, max_batch_size=64)
    repository.affine("thrice", 3, extra="instance_group [{ count: 3 kind: KIND_CPU }]\n")
    repository.affine("versions", 2, extra="version_policy { all {} }\n")
    (repository.root / "versions" / "7").mkdir()
    repository.affine("seven", 7)
    (repository.root / "seven" / "1" / "model.onnx").replace(repository.root / "versions" / "7" / "model.onnx")
    repository.affine("seven", 7)
    repository.add()
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
    repository.network(
        "looked_up",
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        {"index": (INT64, [1])},
        {"y": (FLOAT, [1])},
        extra='platform: "onnxruntime_onnx"\n' + JOINING,
        initializers=[table],
    )
    with TritonServer(repository.root, installation=triton_installation) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def ask(client: grpc.InferenceServerClient, model: str, version: str = "", **inputs: Any) -> Any:
    """The model's answer, by output name."""
    tensors = []
    for name, array in inputs.items():
        tensors.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    return client.infer(model, tensors, model_version=version)


def rows(count: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    return start + np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def test_callers_who_come_at_the_same_time_are_joined_and_get_their_own_rows(
    client: grpc.InferenceServerClient,
) -> None:
    sent = [rows(1 + k % 5, 100.0 * k) for k in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda x: ask(client, "joined", x=x).as_numpy("y"), sent))
    for x, y in zip(sent, answers, strict=True):
        np.testing.assert_array_equal(y, 2 * x + 1)
    counted = client.get_inference_statistics("joined").model_stats[0]
    assert counted.inference_count == sum(len(x) for x in sent)
    assert counted.execution_count < len(sent)


def test_request_that_fails_spoils_no_other_of_its_batch(client: grpc.InferenceServerClient) -> None:
    def look_up(index: int) -> float | str:
        try:
            return float(ask(client, "looked_up", index=np.array([[index]], np.int64)).as_numpy("y")[0, 0])
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(look_up, [2, 99, 0, 1]))
    assert (answers[0], answers[2], answers[3]) == (30.0, 10.0, 20.0)
    assert isinstance(answers[1], str) and "99" in answers[1]


def test_instances_are_as_many_as_the_config_says(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    assert client.get_model_config("thrice").config.instance_group[0].count == 3
    assert ask(client, "thrice", x=rows(2)).as_numpy("y").tolist() == (3 * rows(2)).tolist()
    log = server.log.read_text(errors="replace")
    assert [f"thrice_0_{number} (CPU device 0)" in log for number in range(4)] == [True, True, True, False]


def test_each_version_is_its_own_folder(client: grpc.InferenceServerClient) -> None:
    for version, factor in (("1", 2.0), ("7", 7.0), ("", 7.0)):
        answer = ask(client, "versions", version, x=rows(1)).as_numpy("y")
        assert answer.tolist() == (factor * rows(1)).tolist(), version


def test_only_the_outputs_asked_for_come_back(client: grpc.InferenceServerClient) -> None:
    answer = ask(client, "add", a=rows(2), b=rows(2, 1.0))
    assert [output.name for output in answer.get_response().outputs] == ["sum"]
    assert answer.as_numpy("sum").tolist() == (2 * rows(2) + 1).tolist()


def test_wrong_tensors_are_refused_and_the_server_goes_on(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        ask(client, "add", a=np.zeros((2, 4), np.float32), b=rows(2))
    with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1"):
        ask(client, "add", a=rows(2))
    assert ask(client, "add", a=rows(1), b=rows(1)).as_numpy("sum").shape == (1, 3)


def test_platform_stays_that_of_the_config(server: TritonServer) -> None:
    """The same config is NVIDIA's back end's in the container: nothing here rewrites it."""
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/add/config", timeout=10) as response:
        config = json.load(response)
    assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")


def test_metrics_are_there(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    assert client.is_server_ready()
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        text = response.read().decode()
    assert 'nv_inference_request_success{model="add"' in text
