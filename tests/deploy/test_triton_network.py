"""The networks of the Triton back end, without a server: what they refuse, what they join, how they split.

Were these to fail, a caller of Triton would get rows of another's answer, or no word on why a model does not load.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from service.engines import sessions
from service.engines.config import read_model
from tests.conftest import ROOT
from tests.service.engines.repositories import FLOAT, Repository, write_onnx


def load_module(name: str) -> ModuleType:
    """A module of the back end: no package, because Triton puts its folder on the path."""
    path = ROOT / "deploy" / "triton" / "backends" / "onnxruntime" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


devices = load_module("devices")
network = load_module("network")


def tensor(name: str, *dims: int, kind: str = "TYPE_FP32") -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": list(dims)}


def config(**changes: Any) -> dict[str, Any]:
    """What Triton gives a back end of a model y = 2 x + 1 on rows of 3."""
    return {"name": "line", "max_batch_size": 64, "input": [tensor("x", 3)], "output": [tensor("y", 3)]} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The version folder of that model."""
    Repository(tmp_path).affine("line", 2, 1)
    return tmp_path / "line" / "1"


def rows(count: int, start: float = 0.0) -> dict[str, Any]:
    return {"x": start + np.arange(count * 3, dtype=np.float32).reshape(count, 3)}


def test_each_request_gets_its_own_rows(folder: Path) -> None:
    requests = [rows(1), rows(5, 100), rows(20, 1000), rows(2, 5000)]
    answers = network.Network(config(), folder).run(requests, ["y"])
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], 2 * request["x"] + 1)


def test_requests_are_joined_into_runs_of_at_most_eight_rows_on_a_cpu(folder: Path) -> None:
    one = network.Network(config(), folder)
    runs, run = [], one._session.run

    class Counting:
        def run(self, outputs: Any, feeds: Any) -> Any:
            runs.append(len(feeds["x"]))
            return run(outputs, feeds)

    one._session = Counting()
    one.run([rows(3), rows(2), rows(2)], ["y"])
    assert runs == [7]
    runs.clear()
    one.run([rows(6), rows(3)], ["y"])
    assert sorted(runs) == [4, 5]


def test_requests_of_other_shapes_run_apart(tmp_path: Path) -> None:
    path = tmp_path / "1" / "model.onnx"
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    write_onnx(path, nodes, {"x": (FLOAT, ["L"])}, {"y": (FLOAT, ["L"])})
    given = config(input=[tensor("x", -1)], output=[tensor("y", -1)])
    requests = [{"x": np.full((1, width), width, np.float32)} for width in (3, 5, 3)]
    answers = network.Network(given, path.parent).run(requests, ["y"])
    assert [answer["y"].tolist() for answer in answers] == [[[-3.0] * 3], [[-5.0] * 5], [[-3.0] * 3]]


def test_request_that_fails_spoils_no_other(tmp_path: Path) -> None:
    """``table[index]`` fails for an index outside of the table."""
    path = tmp_path / "1" / "model.onnx"
    table = helper.make_tensor("table", FLOAT, [3], [10.0, 20.0, 30.0])
    nodes = [helper.make_node("Gather", ["table", "index"], ["y"])]
    write_onnx(path, nodes, {"index": (7, [1])}, {"y": (FLOAT, [1])}, initializers=[table])
    given = config(input=[tensor("index", 1, kind="TYPE_INT64")], output=[tensor("y", 1)])
    requests = [{"index": np.array([[index]])} for index in (2, 99, 0)]
    good, bad, other = network.Network(given, path.parent).run(requests, ["y"])
    assert good["y"] == [[30.0]] and other["y"] == [[10.0]]
    assert isinstance(bad, Exception) and "99" in str(bad)


def test_model_without_a_batch_axis_is_run_for_each_request(tmp_path: Path) -> None:
    Repository(tmp_path).affine("line", 2, 1, max_batch_size=0)
    one = network.Network(config(max_batch_size=0), tmp_path / "line" / "1")
    answers = one.run([{"x": np.array([k, k, k], np.float32)} for k in (1, 2)], ["y"])
    assert [answer["y"].tolist() for answer in answers] == [[3.0] * 3, [5.0] * 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": [tensor("image", 3)]}, ["image", "'x'"]),
        ({"output": [tensor("z", 3)]}, ["'z'", "'y'"]),
        ({"input": [tensor("x", 4)]}, ["'x'", "[-1, 4]", "[-1, 3]"]),
        ({"input": [tensor("x", 3, kind="TYPE_UINT8")]}, ["TYPE_UINT8", "tensor(float)"]),
        ({"max_batch_size": 0}, ["'x'", "[3]", "[-1, 3]"]),
        ({"default_model_filename": "other.onnx"}, ["other.onnx is missing"]),
        ({"parameters": {"gpu_mem_limit": {"string_value": "4GB"}}}, ["gpu_mem_limit", "'4GB'"]),
        ({"parameters": {"arena_extend_strategy": {"string_value": "2"}}}, ["arena_extend_strategy", "2"]),
        ({"parameters": {"intra_op_thread_count": {"string_value": "many"}}}, ["intra_op_thread_count", "'many'"]),
    ],
)
def test_config_that_does_not_fit_is_refused_by_name(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(network.ModelError) as refusal:
        network.Network(config(**changes), folder)
    assert all(word in str(refusal.value) for word in ["'line'", *words]), refusal.value


def test_file_that_is_no_graph_is_refused_by_name(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(network.ModelError, match=r"cannot load .*model\.onnx"):
        network.Network(config(), folder)


def test_threads_are_those_of_the_config_or_all_cores_asleep_when_idle(folder: Path) -> None:
    options = network.Network(config(), folder)._session.get_session_options()
    assert options.intra_op_num_threads == network.available_cores()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    given = {"intra_op_thread_count": "3", "inter_op_thread_count": "2", "session.intra_op.allow_spinning": "1"}
    parameters = {key: {"string_value": value} for key, value in given.items()}
    options = network.Network(config(parameters=parameters), folder)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_gpu_instance_without_cuda_runs_on_the_cpu_and_says_why(folder: Path) -> None:
    one = network.Network(config(), folder, device=0)
    assert one.providers[-1] == "CPUExecutionProvider"
    if "CUDAExecutionProvider" in one.providers:
        assert one.off_device is None
    else:
        assert one.off_device and re.search(r"without CUDA|cannot open shared object|CUDA", one.off_device)
    np.testing.assert_array_equal(one.run([rows(2)], ["y"])[0]["y"], 2 * rows(2)["x"] + 1)
    assert network.Network(config(), folder).off_device is None, "nobody asked for a GPU"


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "capi").mkdir()
    monkeypatch.setattr(devices.onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    assert "libonnxruntime_providers_shared.so: cannot open shared object file" in devices.missing_library()


PARAMETERS = [
    {},
    {"gpu_mem_limit": "4294967296", "arena_extend_strategy": "1"},
    {"gpu_mem_limit": "0", "arena_extend_strategy": "0", "cudnn_conv_algo_search": "2", "intra_op_thread_count": "3"},
    {"do_copy_in_default_stream": "0", "cudnn_conv_algo_search": "0"},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_cuda_gets_the_options_that_the_embedded_engine_gives_it(parameters: dict[str, str], tmp_path: Path) -> None:
    """Two programs that share no package, one reading of the config."""
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}\n' for key, text in parameters.items()]
    Repository(tmp_path).affine("line", 2, 1, extra="".join(lines))
    expected = sessions.cuda_options(read_model(tmp_path / "line"))
    assert devices.cuda_options(parameters) == expected
    assert expected["cudnn_conv_algo_search"] in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")


def test_memory_limit_and_arena_reach_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an ONNX Runtime that says it has CUDA, and takes note of what it is asked."""
    asked: list[Any] = []
    real = devices.onnxruntime.InferenceSession

    def session(file: str, options: Any, providers: Any, **more: Any) -> Any:
        asked.append(providers)
        if more:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return real(file, options, providers=providers)

    monkeypatch.setattr(devices.onnxruntime, "get_available_providers", lambda: [devices.CUDA, devices.CPU])
    monkeypatch.setattr(devices.onnxruntime, "InferenceSession", session)
    given = {"gpu_mem_limit": "4294967296", "arena_extend_strategy": "1"}
    parameters = {key: {"string_value": value} for key, value in given.items()}
    one = network.Network(config(parameters=parameters), folder, device=3)
    (name, options), last = asked[0]
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "3"
    assert (options["gpu_mem_limit"], options["arena_extend_strategy"]) == ("4294967296", "kSameAsRequested")
    assert one.off_device == "CUDA failure 100: no CUDA-capable device is detected"
    assert one.providers == ["CPUExecutionProvider"]
