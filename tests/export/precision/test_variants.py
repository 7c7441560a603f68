"""If these fail, another precision is served with the wrong parts, or the float repository is changed by making one."""

from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from export.configs import read_config
from export.precision.conversion import read_configs
from export.precision.variants import Converted, stage_variant
from export.repository import publish, staging_folder
from service.engines.config import read_repository
from service.engines.ensembles import check_ensembles
from tests.export.precision.graphs import small_graph
from tests.export.precision.published import tiny_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path / "models")


def change(**more: str) -> Converted:
    return Converted(small_graph(1).SerializeToString(), "## Precision\n\nfp8\n", {"precision": "fp8"}, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sibling_has_every_model_and_leaves_the_float_repository_alone(repository: Path, tmp_path: Path) -> None:
    before, sibling = files(repository), tmp_path / "sibling"
    with staging_folder(sibling) as staged:
        stage_variant(read_configs(repository), {"heads": change()}, staged, sibling, whole=True)
        publish(staged, sibling, 2)
    assert files(repository) == before
    configs = read_repository(sibling)
    check_ensembles(configs)
    assert set(configs) == {"heads", "fusion", "pose"}
    assert configs["heads"].metadata.parameters["precision"] == "fp8"
    assert configs["heads"].onnx is not None
    assert configs["heads"].onnx.read_bytes() == small_graph(1).SerializeToString()
    assert (sibling / "heads/MODEL_CARD.md").read_text() == "# heads\n\n## Precision\n\nfp8\n"


def test_a_new_version_is_what_the_ensembles_ask_for_then(repository: Path) -> None:
    with staging_folder(repository) as staged:
        stage_variant(read_configs(repository), {"heads": change()}, staged, repository, whole=False)
        publish(staged, repository, 2)
    configs = read_repository(repository)
    check_ensembles(configs)
    assert configs["heads"].metadata.versions == (1, 2)
    assert {step.model: step.version for step in configs["pose"].steps} == {"heads": 2, "fusion": 1}


def test_a_plan_is_a_config_that_speaks_of_tensorrt_alone(repository: Path, tmp_path: Path) -> None:
    path = repository / "heads/config.pbtxt"
    path.write_text(
        path.read_text()
        + 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }\n'
        + 'parameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }\n'
        + 'parameters { key: "cudnn_conv_algo_search" value { string_value: "1" } }\n'
    )
    sibling = tmp_path / "plans"
    with staging_folder(sibling) as staged:
        stage_variant(read_configs(repository), {"heads": change(platform="tensorrt_plan")}, staged, sibling, True)
        config: schema.ModelConfig = read_config(staged / "heads/config.pbtxt")
        assert (staged / "heads/1/model.plan").is_file() and not (staged / "heads/1/model.onnx").exists()
        assert read_config(staged / "fusion/config.pbtxt").platform == "onnxruntime_onnx"
        assert [step.model_version for step in read_config(staged / "pose/config.pbtxt").ensemble_scheduling.step] == [
            1, 1,
        ]  # fmt: skip
    assert config.platform == "tensorrt_plan" and config.max_batch_size == 8
    assert not config.HasField("optimization")
    assert set(config.parameters) == {"kind", "precision"}
