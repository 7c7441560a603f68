"""If these fail, TensorRT inside Triton's ONNX Runtime loads no network, serves another one's, or spoils poses."""

import asyncio
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from export.accelerated import accelerate_graphs, is_accelerated_graph
from export.configs import NETWORK_QUEUE, Accelerator, ModelPlan, read_config
from export.configure import ConfigureRequest, configure
from export.precision.calibration import load_pictures
from export.precision.comparison import answers_of, compare, questions
from export.precision.conversion import read_configs
from export.repository import publish, staging_folder, write_models
from tests.conftest import ROOT
from tests.export.precision.graphs import small_graph
from tests.export.precision.published import CROPS, MAPS, tiny_repository

NETWORKS = ("person_detector", "pose_heads")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sibling of the repository that ships."""
    into = tmp_path_factory.mktemp("shipped") / "models_trt"
    assert set(configure(ConfigureRequest(ROOT / "model_repository", into, Accelerator()))) == set(NETWORKS)
    return into


def graph(repository: Path, name: str, version: int = 0) -> Path:
    """The network's file; by default that of its newest version."""
    return repository / name / str(version or read_configs(repository)[name].version) / "model.onnx"


def known_by(path: Path) -> tuple[list[str], list[str]]:
    """What ONNX Runtime hashes of a graph to find its engine, beside the file's name and versions of libraries."""
    model = onnx.load(path).graph
    return [value.name for value in model.input], [name for node in model.node for name in node.output]


def test_a_retrained_network_gets_an_engine_of_its_own(tmp_path: Path) -> None:
    repository, sibling = tiny_repository(tmp_path / "models"), tmp_path / "models_trt"
    configure(ConfigureRequest(repository, sibling, Accelerator()))
    for seed, version in ((1, 2), (1, 3)):
        with staging_folder(sibling) as staged:
            plan = ModelPlan("heads", (CROPS,), (MAPS,), 8, {"kind": "part"}, small_graph(seed), NETWORK_QUEUE)
            write_models(staged, [plan], version)
            publish(staged, sibling, 3)
    first, second, third = (graph(sibling, "heads", version) for version in (1, 2, 3))
    assert known_by(first) == known_by(second), "else nothing is shown here"
    assert onnx.load(first).graph.name != onnx.load(second).graph.name == onnx.load(third).graph.name
    assert onnx.load(graph(repository, "heads")).graph.name == small_graph().graph.name, "others need no such name"


def test_a_name_tells_everything_in_a_graph(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    path = tmp_path / "1/model.onnx"
    onnx.save(small_graph(), path)
    config = read_config(ROOT / "model_repository/pose_heads/config.pbtxt")
    assert not is_accelerated_graph(path)
    accelerate_graphs(tmp_path, config)
    written = path.read_bytes()
    assert is_accelerated_graph(path)
    accelerate_graphs(tmp_path, config)
    assert path.read_bytes() == written
    changed = onnx.load(path)
    changed.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1
    onnx.save(changed, path)
    assert not is_accelerated_graph(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_provider_finds_pixels_cast_and_the_network_in_float16(shipped: Path, name: str, tmp_path: Path) -> None:
    """As ONNX Runtime hands the graph on, after what it does to every one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "given.onnx")
    onnxruntime.InferenceSession(str(graph(shipped, name)), options, providers=["CPUExecutionProvider"])
    given = onnx.load(tmp_path / "given.onnx").graph
    (pixels,) = (value.name for value in given.input)
    assert [node.op_type for node in given.node if pixels in node.input] == ["Cast"]
    assert given.name == onnx.load(graph(shipped, name)).graph.name
    weights = {tensor.name: tensor for tensor in onnx.load(graph(shipped, name)).graph.initializer}
    kernels = [weights[node.input[1]] for node in onnx.load(graph(shipped, name)).graph.node if node.op_type == "Conv"]
    assert kernels and {tensor.data_type for tensor in kernels} == {TensorProto.FLOAT16}


@pytest.mark.slow
def test_people_stay_where_they_are(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONPOSE_DATA", raising=False)
    configs = read_configs(ROOT / "model_repository")
    wanted = questions(configs, NETWORKS, load_pictures(None, 8).comparison, 8)
    expected, found = (asyncio.run(answers_of(path, wanted)) for path in (ROOT / "model_repository", shipped))
    differences = compare(wanted, expected, found, "fp16")
    assert {one.model for one in differences} >= {"person_detector", "pose"}
    assert [one for one in differences if not one.passes or not one.count] == []
