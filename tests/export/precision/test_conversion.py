"""If these fail, `python -m export quantize` publishes what does not answer, or stops where it should not."""

import asyncio
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from export.__main__ import app
from export.check import check_repository
from export.checkpoints import ExportError
from export.precision import comparison
from export.precision.conversion import chosen_networks, read_configs
from service.engines.config import read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_networks_are_those_that_take_pictures_and_have_weights() -> None:
    assert chosen_networks(read_configs(REPOSITORY), ()) == ["person_detector", "pose_heads"]
    with pytest.raises(ExportError, match=r"no networks \['pose'\].*pose_heads"):
        chosen_networks(read_configs(REPOSITORY), ["pose"])


@pytest.mark.slow
def test_int8_is_published_with_its_sensitive_blocks_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONPOSE_DATA", raising=False)
    before = {path: path.read_bytes() for path in REPOSITORY.rglob("*.pbtxt")}
    code, output = run(
        "quantize", "int8", "--repository", REPOSITORY, "--into", tmp_path / "int8", "--model", "pose_heads",
        "--count", "8",
    )  # fmt: skip
    assert code == 0, output
    assert "first" in output and "heads" in output
    configs = read_repository(tmp_path / "int8")
    assert set(configs) == set(read_repository(REPOSITORY))
    network = configs["pose_heads"].onnx
    assert network is not None
    assert network.stat().st_size < 0.7 * (REPOSITORY / "pose_heads/1/model.onnx").stat().st_size
    quantized = [node for node in onnx.load(network).graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) > 20
    assert not [found for found in check_repository(tmp_path / "int8").findings if found.model == "pose_heads"]
    asyncio.run(_answers(tmp_path / "int8"))
    assert {path: path.read_bytes() for path in REPOSITORY.rglob("*.pbtxt")} == before
    code, output = run(
        "compare-precision", tmp_path / "int8", "--repository", REPOSITORY, "--count", "8", "--rounds", "3"
    )
    assert code == 0, output
    assert "| pose_heads      | int8 " in output and "| pose_heads      | model_repository |" in output


async def _answers(repository: Path) -> None:
    engine = EmbeddedEngine(repository, RuntimeSettings(intra_op_threads=1))
    await engine.start()
    await engine.close()


@pytest.mark.slow
def test_what_does_not_answer_alike_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITONPOSE_DATA", raising=False)
    strict = {key: comparison.Limits(0.0, 0.0, 0.0) for key in comparison.LIMITS}
    monkeypatch.setattr(comparison, "LIMITS", strict)
    code, output = run(
        "quantize", "fp16", "--repository", REPOSITORY, "--into", tmp_path / "fp16", "--model", "pose_heads",
        "--count", "8",
    )  # fmt: skip
    assert code == 1
    assert "in fp16 the networks do not answer as in float: pose" in output
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_told_before_anything_is_run(tmp_path: Path) -> None:
    code, output = run("quantize", "fp16", "--repository", tmp_path / "nowhere")
    assert code == 1 and "nowhere is not a folder" in output
    code, output = run("quantize", "fp16", "--repository", REPOSITORY, "--into", tmp_path / "x", "--data",
                       tmp_path / "coco_val.json", tmp_path)  # fmt: skip
    assert code == 1 and "set to measure on" in output
    code, output = run("compare-precision", tmp_path, "--repository", REPOSITORY)
    assert code == 1 and "holds no" in output
