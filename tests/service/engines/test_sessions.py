"""Loading networks: a file that does not fit its config is found at start, not by the first request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.engines.config import RepositoryError, read_model
from service.engines.sessions import OnnxModel, RuntimeSettings, available_cores, chosen_providers, session_options
from tests.service.engines.repositories import FLOAT, INT64, Repository, write_onnx

SETTINGS = RuntimeSettings(intra_op_threads=1)


def load(config: Path) -> OnnxModel:
    return OnnxModel(read_model(config.parent), SETTINGS)


def test_a_network_runs(repository: Repository) -> None:
    model = load(repository.affine("m", 3, 1))
    model.warm_up()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(model.run({"x": x})["y"], 3 * x + 1)
    assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"x"', '"picture"', "['picture'] are not those of"),
        ('"y"', '"z"', "no output 'z'"),
        ("TYPE_FP32", "TYPE_FP16", "is float16, but"),
        ("dims: [3]", "dims: [4]", "[-1, 4]"),
        ("dims: [3]", "dims: [3, 1]", "[-1, 3, 1]"),
        ("dims: [3]", "dims: [-1]", "[-1, -1]"),
        ("max_batch_size: 8", "max_batch_size: 0", "[3]"),
    ],
)
def test_a_config_that_does_not_fit_its_network(repository: Repository, old: str, new: str, named: str) -> None:
    config = repository.affine("m", 3)
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(RepositoryError) as caught:
        load(config)
    assert str(config) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "config", "threads"),
    [
        (RuntimeSettings(intra_op_threads=4, concurrent_runs=2), "", [4, 2]),
        (RuntimeSettings(intra_op_threads=2, concurrent_runs=3), "", [2, 1]),
        (RuntimeSettings(intra_op_threads=1), "", [1]),
        (RuntimeSettings(intra_op_threads=4, concurrent_runs=1), "", [4]),
        (RuntimeSettings(intra_op_threads=4), 'key: "intra_op_thread_count" value { string_value: "3" }', [3]),
    ],
)
def test_runs_beside_others_take_their_share_of_the_threads(
    repository: Repository, settings: RuntimeSettings, config: str, threads: list[int]
) -> None:
    path = repository.affine("m", 3, 1, extra=f"parameters {{ {config} }}" if config else "")
    model = OnnxModel(read_model(path.parent), settings)
    model.warm_up()
    sessions = [model.session] + [model.shared_session] * (model.shared_session is not model.session)
    assert [session.get_session_options().intra_op_num_threads for session in sessions] == threads
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for alone in (True, False):
        np.testing.assert_array_equal(model.run({"x": x}, alone=alone)["y"], 3 * x + 1)


@pytest.mark.parametrize(("width", "joins"), [(3, True), (100_000, False)])
def test_networks_smaller_than_their_rows_are_not_joined_for_on_a_cpu(
    repository: Repository, width: int, joins: bool
) -> None:
    """They have no weights to share: joining maps of megabytes costs more than their arithmetic, as does a queue."""
    config = repository.affine("m", 3, 1, extra="dynamic_batching { }\n")
    if width != 3:
        config.write_text(config.read_text().replace("dims: [3]", f"dims: [{width}]"))
        rows = {"x": (FLOAT, ["W"])}, {"y": (FLOAT, ["W"])}
        write_onnx(config.parent / "1" / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])], *rows)
    model = load(config)
    assert read_model(config.parent).batching.joins
    assert (model.batching.joins, model.batching.at_once) == (joins, not joins)
    assert model.batching.max_rows == SETTINGS.cpu_rows


def test_a_batch_axis_must_be_free(repository: Repository) -> None:
    config = repository.affine("m", 3)
    rows = {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])}
    write_onnx(config.parent / "1" / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])], *rows, batch=[1])
    with pytest.raises(RepositoryError, match="free first axis"):
        load(config)


def test_config_may_fix_an_axis_that_the_network_leaves_free_and_leave_out_outputs(repository: Repository) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    config = repository.network("m", nodes, {"x": (FLOAT, ["W"])}, {"y": (FLOAT, ["W"]), "z": (FLOAT, ["W"])})
    text = config.read_text().replace("dims: [-1]", "dims: [5]")
    config.write_text(text.replace(', { name: "z" data_type: TYPE_FP32 dims: [5] }', ""))
    model = load(config)
    model.warm_up()
    assert list(model.run({"x": np.ones((2, 5), np.float32)})) == ["y"]


def test_no_network_at_all(repository: Repository) -> None:
    config = repository.affine("m", 3)
    (config.parent / "1" / "model.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(RepositoryError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        load(config)


def test_warm_up_finds_a_network_that_cannot_run(repository: Repository) -> None:
    shape = helper.make_tensor("shape", INT64, [2], [-1, 7])  # 3 values a row cannot become 7
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    signature = {"x": (FLOAT, [3])}, {"y": (FLOAT, [7])}
    config = repository.network("m", nodes, *signature, initializers=[shape])
    with pytest.raises(RepositoryError, match="does not run on its warm-up sample \\(one row of zeros\\)"):
        load(config).warm_up()


def test_warm_up_finds_outputs_of_another_shape(repository: Repository) -> None:
    """The width depends on the values, so that only a run can show it."""
    numbers = [helper.make_tensor(name, INT64, [1], [value]) for name, value in (("zero", 0), ("one", 1))]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=INT64),
        helper.make_node("Unsqueeze", ["count", "zero"], ["end"]),
        helper.make_node("Slice", ["x", "zero", "end", "one"], ["y"]),
    ]
    config = repository.network("m", nodes, {"x": (FLOAT, [3])}, {"y": (FLOAT, ["K"])}, initializers=numbers)
    config.write_text(config.read_text().replace("dims: [-1]", "dims: [3]"))
    with pytest.raises(RepositoryError, match=r"dims \[3\], but the network gives \[0\]"):
        load(config).warm_up()


def test_warm_up_leaves_free_axes_alone(repository: Repository) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    load(repository.network("m", nodes, {"x": (FLOAT, ["W"])}, {"y": (FLOAT, ["W"])})).warm_up()


def test_a_network_without_batch_axis(repository: Repository) -> None:
    model = load(repository.affine("m", 2, max_batch_size=0))
    model.warm_up()
    np.testing.assert_array_equal(model.run({"x": np.ones(3, np.float32)})["y"], [2, 2, 2])


def test_parameters_of_tritons_back_end_override_the_settings(repository: Repository) -> None:
    keys = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "session.use_device_allocator_for_initializers": "1",
        "kind": "pose",
    }
    extra = "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in keys.items())
    plain = session_options(read_model(repository.affine("plain", 1).parent), SETTINGS)
    graph = "optimization { graph { level: -1 } }\n"
    tuned = session_options(read_model(repository.affine("tuned", 1, extra=extra + graph).parent), SETTINGS)
    assert (plain.intra_op_num_threads, tuned.intra_op_num_threads) == (1, 3)
    assert (plain.inter_op_num_threads, tuned.inter_op_num_threads) == (1, 2)
    assert plain.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert tuned.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert (plain.enable_cpu_mem_arena, tuned.enable_cpu_mem_arena) == (True, False)
    assert (plain.enable_mem_pattern, tuned.enable_mem_pattern) == (True, False)
    assert plain.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert tuned.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert tuned.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert tuned.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_parameter_that_is_no_number(repository: Repository) -> None:
    extra = 'parameters { key: "intra_op_thread_count" value { string_value: "two" } }'
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: parameter intra_op_thread_count .* 'two'"):
        load(repository.affine("m", 1, extra=extra))


def test_threads_default_to_the_cores_of_this_process(repository: Repository) -> None:
    config = read_model(repository.affine("m", 1).parent)
    assert session_options(config, RuntimeSettings()).intra_op_num_threads == available_cores() >= 1


def test_cuda_comes_first_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    assert chosen_providers(RuntimeSettings()) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there[2:])
    assert chosen_providers(RuntimeSettings()) == ("CPUExecutionProvider",)
    with pytest.raises(RepositoryError, match="CUDAExecutionProvider"):
        chosen_providers(RuntimeSettings(providers=("CUDAExecutionProvider",)))


@pytest.mark.parametrize(
    "wrong", [{"intra_op_threads": -1}, {"concurrent_runs": 0}, {"cpu_rows": -1}, {"drain_seconds": float("nan")}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        RuntimeSettings(**wrong)  # type: ignore[arg-type]


def test_the_written_graphs_are_what_they_say(repository: Repository) -> None:
    """The other tests lean on these graphs: types of the ONNX file survive."""
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)]
    model = load(repository.network("m", nodes, {"x": (INT64, [2])}, {"y": (TensorProto.DOUBLE, [2])}))
    assert model.run({"x": np.ones((1, 2), np.int64)})["y"].dtype == np.float64
