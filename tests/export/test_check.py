"""`check-repository` names every fault of a repository, in words that lead to the file, and none of a good one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from export.__main__ import app
from export.check import Checked, check_repository
from export.configure import ConfigureRequest, configure
from export.precision.conversion import read_configs
from export.tensorrt_plans.conversion import PlanRequest
from export.tensorrt_plans.conversion import write_repository as write_plans
from export.tensorrt_plans.profiles import BatchProfile
from export.tensorrt_plans.requirements import Gpu
from service.engines.config import RepositoryError, read_repository
from tests.conftest import ROOT
from tests.loadtest.stand_in import write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


def faults(checked: Checked) -> str:
    return "\n".join(f"{one.model}: {one.fault}" for one in checked.findings)


def replaced(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def newer_ir(root: Path) -> None:
    path = root / "pose_heads/1/model.onnx"
    model = onnx.load(path)
    model.ir_version = 99
    onnx.save(model, path)


def fixed_batch(root: Path) -> None:
    path = root / "pose_heads/1/model.onnx"
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)


def truncated(root: Path) -> None:
    path = root / "pose_heads/1/model.onnx"
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_the_shipped_repository_has_no_fault() -> None:
    checked = check_repository(ROOT / "model_repository")
    assert faults(checked) == ""
    assert checked.notes == []
    assert len(checked.models) == 10


def test_a_good_repository(repository: Path) -> None:
    checked = check_repository(repository)
    assert faults(checked) == ""
    result = CliRunner().invoke(app, ["check-repository", "--repository", str(repository)])
    assert result.exit_code == 0
    assert "3 networks, 2 ensembles, nothing wrong" in result.output


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replaced("pose/config.pbtxt", '"48"', '"many"'), "pose: model 'pose': parameter input_width = 'many'"),
        (replaced("pose/config.pbtxt", '"48"', '"64"'), "pose: input 'crops' is uint8 [64, 48, 3]; by the parameters"),
        (replaced("pose/config.pbtxt", '"large,medium,small"', '"large,small"'), "must be float32 [2]"),
        (replaced("pose/config.pbtxt", "joints", "points"), "pose: model 'pose': parameter skeleton"),
        (replaced("pose/config.pbtxt", '"score_threshold"', '"threshold"'), "has no parameter 'score_threshold'"),
        (replaced("pose/config.pbtxt", '"0.3"', '"1.3"'), "parameter score_threshold = '1.3': a score is from 0 to 1"),
        (replaced("pose/config.pbtxt", '"pose_flip"', '"pose_flop"'), "flip_model names 'pose_flop', which is not in"),
        (replaced("pose/config.pbtxt", '"flip_model"', '"flip"'), "parameter flip = 'pose_flip': true or false"),
        (replaced("pose/config.pbtxt", '"person_detector"', '"pose"'), "names 'pose', whose kind is not detector"),
        (replaced("pose/config.pbtxt", '"pose_fusion"', '"fusion"'), "step 2 names the model 'fusion', which is not"),
        (replaced("person_detector/config.pbtxt", '"128"', '"256"'), "'images' is uint8 [128, 128, 3]; by the"),
        (replaced("person_detector/config.pbtxt", "[4, 4]", "[4, 5]"), "output 'boxes' has shape [-1, 4, 5]"),
        (replaced("pose_heads/config.pbtxt", "TYPE_UINT8", "TYPE_FP32"), "input 'crops' is float32, but"),
        (replaced("pose_heads/config.pbtxt", "heatmaps_small", "heatmaps_tiny"), "has no output 'heatmaps_tiny'"),
        (replaced("pose_heads/config.pbtxt", "max_batch_size", "max_batch"), 'no field named "max_batch"'),
        (newer_ir, "Unsupported model IR version: 99"),
        (fixed_batch, "max_batch_size needs a free first axis"),
        (truncated, "pose_heads/1/model.onnx: ONNX Runtime cannot load it"),
        (lambda root: (root / "pose_heads/1/model.onnx").unlink(), "pose_heads/1/model.onnx is missing"),
        (lambda root: shutil.rmtree(root / "pose_heads/1"), "no version folder"),
        (lambda root: (root / "pose_heads/2").mkdir(), "2/model.onnx is missing"),
        (lambda root: (root / "pose_heads/v2").mkdir(), "v2 is neither a version folder"),
        (lambda root: (root / "pose_heads/model.onnx").touch(), "pose_heads/model.onnx is neither"),
        (lambda root: (root / "pose_heads/1/old.onnx").touch(), "old.onnx is not read: the graph is model.onnx"),
        (lambda root: (root / "pose/1/model.onnx").touch(), "has no use in an ensemble's version"),
        (lambda root: (root / "notes").mkdir(), "notes has no config.pbtxt"),
        (lambda root: shutil.rmtree(root / "pose_fusion"), "'pose_fusion', which is not in the repository"),
        (replaced("pose_heads/config.pbtxt", "max_batch_size: 16", "max_batch_size: 16\n"
            'model_warmup { name: "w" batch_size: 1 inputs { key: "crop" value { data_type: TYPE_UINT8 } } }'),
         "model_warmup 'w' has the inputs ['crop']"),
        (replaced("pose_heads/config.pbtxt", "max_batch_size: 16", "max_batch_size: 16\nparameters { "
            'key: "intra_op_thread_count" value { string_value: "all" } }'), "intra_op_thread_count must be a number"),
        (lambda root: shutil.rmtree(root), "is not a folder"),
    ],
)  # fmt: skip
def test_each_fault_is_named(repository: Path, change: Callable[[Path], object], named: str) -> None:
    change(repository)
    assert named in faults(check_repository(repository))


def test_all_faults_are_named_and_the_command_fails(repository: Path) -> None:
    replaced("pose/config.pbtxt", '"48"', '"many"')(repository)
    replaced("pose/config.pbtxt", '"1.25"', '"-1"')(repository)
    truncated(repository)
    (repository / "pose_fusion/next").mkdir()
    result = CliRunner().invoke(app, ["check-repository", "--repository", str(repository)])
    assert result.exit_code == 1
    shown = "".join(result.output.split())
    for named in ("input_width='many'", "padding='-1'", "ONNXRuntimecannotloadit", "fusion/nextisneither", "4faults"):
        assert named in shown


def test_configure_leaves_graphs_alone_and_gives_what_triton_needs(repository: Path) -> None:
    graphs = {path: path.read_bytes() for path in repository.rglob("*.onnx")}
    assert configure(ConfigureRequest(repository)) == sorted(path.name for path in repository.iterdir())
    assert configure(ConfigureRequest(repository)) == []
    assert {path: path.read_bytes() for path in repository.rglob("*.onnx")} == graphs
    checked = check_repository(repository)
    assert faults(checked) == ""
    heads = checked.models["pose_heads"]
    assert [sample.rows for sample in heads.warm_up] == [1, 8, 16]
    assert (heads.batching.joins, heads.batching.max_queue) == (True, 512)
    assert [step.version for step in checked.models["pose"].steps] == [1, 1]


def test_configure_takes_versions_into_use_that_were_put_there_by_hand(repository: Path) -> None:
    configure(ConfigureRequest(repository))
    shutil.copytree(repository / "pose_heads/1", repository / "pose_heads/2")
    (note, other) = check_repository(repository).notes
    assert "step 1 names version 1 of 'pose_heads', the newest is 2" in note.fault
    assert other.model == "pose_flip"
    assert configure(ConfigureRequest(repository)) == ["pose", "pose_flip"]
    checked = check_repository(repository)
    assert faults(checked) == ""
    assert checked.notes == []
    assert checked.models["pose"].metadata.versions == (2,)
    assert [step.version for step in checked.models["pose"].steps] == [2, 1]


def test_a_sibling_with_tensorrt(repository: Path, tmp_path: Path) -> None:
    """The keys are those of Triton's ONNX Runtime back end; without shapes each new batch size builds an engine."""
    replaced("pose_heads/config.pbtxt", "max_batch_size", "dynamic_batching { max_queue_delay_microseconds: 500 }\n"
             "max_batch_size")(repository)  # fmt: skip
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    sibling = tmp_path / "models_trt"
    arguments = ["configure", "--repository", str(repository), "--into", str(sibling), "--tensorrt"]
    result = CliRunner().invoke(app, [*arguments, "--engine-cache", "/engines", "--gpu-memory", "4096"])
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert faults(check_repository(sibling)) == ""
    heads = " ".join((sibling / "pose_heads/config.pbtxt").read_text().split())
    assert "precision_mode" not in heads, "TensorRT would round where it likes"
    for key, value in {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/engines/pose_heads",
        "trt_profile_min_shapes": "crops:1x64x48x3",
        "trt_profile_opt_shapes": "crops:8x64x48x3",
        "trt_profile_max_shapes": "crops:16x64x48x3",
    }.items():
        assert f'parameters {{ key: "{key}" value: "{value}" }}' in heads
    assert 'key: "gpu_mem_limit" value { string_value: "4294967296" }' in heads
    assert "tensorrt" not in (sibling / "pose_fusion/config.pbtxt").read_text()
    shutil.copytree(repository / "pose_heads/1", sibling / "pose_heads/2")
    assert "pose_heads/2/model.onnx is not written for TensorRT" in faults(check_repository(sibling))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "is there already" in again.output
    alone = CliRunner().invoke(app, ["configure", "--repository", str(repository), "--tensorrt"])
    assert alone.exit_code == 1
    assert "give --into" in "".join(alone.output.splitlines())


def test_a_sibling_of_tensorrt_plans(repository: Path, tmp_path: Path) -> None:
    """What `export tensorrt` writes can be checked where no TensorRT is, except for what is in the plans."""
    sibling = tmp_path / "plans"
    gpu = Gpu("NVIDIA H100", (9, 0), (13, 4))
    write_plans(
        PlanRequest(repository, sibling), read_configs(repository), {"pose_heads": b"plan"},
        {"pose_heads": BatchProfile(1, 8, 16)}, "10.14.1.48", gpu,
    )  # fmt: skip
    result = CliRunner().invoke(app, ["check-repository", "--repository", str(sibling)])
    assert result.exit_code == 0, result.output
    assert "3 networks, 2 ensembles, nothing wrong" in result.output
    with pytest.raises(RepositoryError, match="platform 'tensorrt_plan', backend '' cannot be served"):
        read_repository(sibling)
    replaced("pose_heads/config.pbtxt", "heatmaps_small", "heatmaps_tiny")(sibling)
    assert "pose: " in faults(check_repository(sibling))
    (sibling / "pose_heads/1/model.plan").rename(sibling / "pose_heads/1/model.trt")
    assert "pose_heads/1/model.plan is missing" in faults(check_repository(sibling))


def test_a_configure_that_would_break_the_repository_changes_nothing(repository: Path) -> None:
    replaced("pose/config.pbtxt", '"pose_fusion"', '"fusion"')(repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["configure", "--repository", str(repository)])
    assert result.exit_code == 1
    assert "names the model 'fusion'" in "".join(result.output.splitlines())
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
