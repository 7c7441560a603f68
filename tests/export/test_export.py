"""The whole way on tiny networks. If these fail, `python -m export` ships models that are not what was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

import export.installation
from export.__main__ import app
from export.checkpoints import ExportError, read_checkpoints
from export.configs import ModelPlan
from export.graphs import halve_weights
from export.plans import PosePlan
from service.engines.config import read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.ensembles import check_ensembles
from service.presets import detector_preset, pose_preset
from service.skeletons import COCO17, LSP14

Make = Callable[..., Path]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--check-count", "8"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def trunk(pose_checkpoint: Make) -> Path:
    """One trunk with three heads."""
    return pose_checkpoint()


@dataclass
class Exported:
    """What the command wrote, and what it had planned. Read only."""

    folder: Path
    pose: PosePlan
    detector: ModelPlan


# As `python -m training evaluate` prints it.
_MEASURED = {
    "boxes": "detector",
    "options": {"model": "pose", "flip": True},
    "sets": {
        "coco_val": {
            "keypoints": {"AP": 0.1234, "AP50": 0.3, "spread": {"AP": 0.011, "AP50": 0.02}},
            "boxes": None,
            "pck": {"mean": 0.5, "spread": None},
            "joint_errors": {"good": 0.4, "jitter": 0.3, "inversion": 0.1, "swap": 0.05, "miss": 0.15},
        }
    },
}


@pytest.fixture(scope="session")
def exported(trunk: Path, detector_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A detector and a trunk exported into one repository."""
    folder = tmp_path_factory.mktemp("exported") / "models"
    metrics = folder.parent / "lsp_val.json"
    metrics.write_text('progress, not JSON\n{"PCK@0.2": 0.7125, "joints": {"head": 0.9}}\n')
    plans: dict[str, Any] = {}

    def remember(name: str) -> Callable[..., Any]:
        real = getattr(export.installation, name)
        return lambda *arguments: plans.setdefault(name, real(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("plan_pose", "plan_detector"):
            patch.setattr(export.installation, name, remember(name))
        sheet = folder.parent / "docs" / "failures.png"
        sheet.parent.mkdir()
        sheet.write_bytes(b"a picture")
        measured = folder.parent / "coco.json"
        measured.write_text(json.dumps(_MEASURED))
        common = ("--repository", folder, "--metrics", metrics, "--metrics", measured, "--failures", sheet)
        code, output = run(detector_checkpoint, *common)
        assert code == 0, output
        # In float32: joints of a random network have rivals so near that float16's rounding decides between some.
        code, output = run(trunk, *common, "--precision", "fp32", "--score-threshold", "0.45", "--flip")
    assert code == 0, output
    return Exported(folder, plans["plan_pose"], plans["plan_detector"])


@pytest.fixture(scope="session")
def repository(exported: Exported) -> Path:
    return exported.folder


def test_all_models_of_the_contract_are_there_and_fit_each_other(repository: Path) -> None:
    configs = read_repository(repository)
    check_ensembles(configs)
    kinds = {name: config.metadata.parameters["kind"] for name, config in configs.items()}
    assert kinds == {
        "person_detector": "detector",
        "pose": "pose", "pose_lsp14": "pose", "pose_flip": "pose_flip", "pose_lsp14_flip": "pose_flip",
        **dict.fromkeys(["pose_heads", "pose_fusion", "pose_lsp14_fusion", "pose_mirror", "pose_flip_average"], "part"),
    }  # fmt: skip
    for name, config in configs.items():
        assert config.metadata.max_batch_size == (8 if name == "person_detector" else 64)
        assert config.batching.max_queue > 0 or config.steps, "a queue without bound fills the memory"


def test_the_gateway_reads_its_presets_from_the_configs(repository: Path) -> None:
    configs = read_repository(repository)
    pose, lsp = (pose_preset(configs[name].metadata) for name in ("pose", "pose_lsp14"))
    assert (pose.skeleton, lsp.skeleton) == (COCO17, LSP14)
    assert pose.size == (64, 128)
    assert pose.radii == ("large", "medium", "small")
    assert (pose.flip_model, lsp.flip_model) == ("pose_flip", "pose_lsp14_flip")
    assert pose.flip, "the option"
    assert pose.padding == 1.25
    assert pose.score_threshold == 0.45, "the option"
    detector = detector_preset(configs[pose.detector].metadata)
    assert (detector.side, detector.box_threshold) == (128, 0.3)


def test_graphs_are_free_in_the_batch_axis_only_and_store_weights_as_asked(repository: Path) -> None:
    for path in sorted(repository.glob("*/*/model.onnx")):
        model = onnx.load(path)
        for value in (*model.graph.input, *model.graph.output):
            first, *rest = value.type.tensor_type.shape.dim
            assert first.dim_param == "batch", path
            assert all(dim.dim_value > 0 for dim in rest), path
    for name, kind in (("person_detector", onnx.TensorProto.FLOAT16), ("pose_heads", onnx.TensorProto.FLOAT)):
        graph = onnx.load(repository / name / "1/model.onnx").graph
        assert {t.data_type for t in graph.initializer if np.prod(t.dims) >= 1024 and len(t.dims) == 4} == {kind}


def test_half_weights_change_maps_by_their_last_digits_only(exported: Exported) -> None:
    heads = next(m for m in exported.pose.models if m.name == "pose_heads")
    half = onnx.ModelProto.FromString(heads.graph.SerializeToString())
    halve_weights(half)
    crops = np.random.default_rng(0).integers(0, 256, (3, 128, 64, 3), dtype=np.uint8)
    sessions = [
        onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for graph in (heads.graph, half)
    ]
    whole, rounded = (session.run(None, {"crops": crops}) for session in sessions)
    assert len(half.SerializeToString()) < 0.7 * len(heads.graph.SerializeToString())
    for a, b in zip(whole, rounded, strict=True):
        assert 0 < np.abs(a - b).max() < 0.05


@pytest.mark.parametrize("batch", [1, 2, 5, 70])
async def test_any_number_of_crops_gets_the_same_answer_as_one_by_one(repository: Path, batch: int) -> None:
    crops = np.random.default_rng(batch).integers(0, 256, (batch, 128, 64, 3), dtype=np.uint8)
    weights = np.ones((batch, 3), np.float32)
    engine = EmbeddedEngine(repository)
    await engine.start()
    together = (await engine.infer("pose", {"crops": crops, "fusion_weights": weights}))["keypoints"]
    chosen = slice(0, batch, max(1, batch // 4))
    alone = [
        (await engine.infer("pose", {"crops": crops[i : i + 1], "fusion_weights": weights[:1]}))["keypoints"][0]
        for i in range(batch)[chosen]
    ]
    await engine.close()
    assert together.shape == (batch, 17, 3)
    np.testing.assert_allclose(together[chosen], np.stack(alone), atol=0.05)


def test_cards_say_terms_numbers_and_differences_and_name_no_folder(repository: Path, trunk: Path) -> None:
    for name in ("pose", "pose_lsp14", "person_detector"):
        card = (repository / name / "MODEL_CARD.md").read_text()
        for text in ("Flickr licences", "CC BY 4.0", "0123456789ab", "2 CPU threads", "1.25 h", "0.7125", "## Limits"):
            assert text in card, (name, text)
        assert "rendered scenes" in card, "what it was compared on"
        for folder in ("nowhere", str(trunk.parent), "/tmp", str(Path.home())):
            assert folder not in card, (name, folder)
    card = (repository / "pose/MODEL_CARD.md").read_text()
    assert "| `pose_flip` | mirrored crops |" in card
    assert "| `coco`, flip | `coco_val` | detector | 12.3 ± 1.1 | 30.0 ± 2.0 |  |  | 50.0 |" in card
    assert "| `coco`, `coco_val` | 40.0 | 30.0 | 10.0 | 5.0 | 15.0 |" in card
    assert "(../../docs/failures.png)" in card, "a path from the card's folder"
    # Figures of the model `pose` are of no other preset.
    assert "12.3 ± 1.1" not in (repository / "pose_lsp14/MODEL_CARD.md").read_text()


def test_a_sheet_of_failures_that_is_not_there_is_named(trunk: Path, tmp_path: Path) -> None:
    code, output = run(trunk, "--repository", tmp_path / "models", "--failures", tmp_path / "nowhere.png")
    assert code == 1
    assert "nowhere.png" in output
    assert not (tmp_path / "models" / "pose").exists()


def disturbed(plan: ModelPlan) -> ModelPlan:
    """The plan with noise on its largest weight: an export gone wrong in a way that no checker of files sees."""
    graph = onnx.ModelProto.FromString(plan.graph.SerializeToString())
    tensor = max(graph.graph.initializer, key=lambda t: np.prod(t.dims))
    values = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).normal(0, values.astype(np.float32).std(), values.shape)
    tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(values.dtype), tensor.name))
    return replace(plan, graph=graph)


def test_disturbed_weights_are_refused_and_nothing_is_changed(
    trunk: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(exported.folder)
    models = tuple(disturbed(m) if m.name == "pose_heads" else m for m in exported.pose.models)
    monkeypatch.setattr(export.installation, "plan_pose", lambda *_: replace(exported.pose, models=models))
    code, output = run(trunk, "--repository", exported.folder)
    assert code == 1
    assert "do not answer as the trained ones" in output
    assert "limit 0.5" in output
    assert contents(exported.folder) == before
    assert [path.name for path in exported.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_disturbed_detector_is_refused(
    detector_checkpoint: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.installation, "plan_detector", lambda *_: disturbed(exported.detector))
    code, output = run(detector_checkpoint, "--repository", tmp_path / "models")
    assert code == 1, output
    assert "person_detector" in output
    assert not (tmp_path / "models").exists()


def test_an_unchanged_plan_passes_the_same_check(
    trunk: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counterpart of the refusals: it is the noise that they refuse. And a second export is a second version."""
    monkeypatch.setattr(export.installation, "plan_pose", lambda *_: exported.pose)
    for version in (1, 2):
        code, output = run(trunk, "--repository", tmp_path / "models")
        assert code == 0, output
        assert (tmp_path / f"models/pose_heads/{version}/model.onnx").is_file()
    served = read_repository(tmp_path / "models")
    assert served["pose_heads"].metadata.versions == (1, 2)
    assert served["pose"].metadata.versions == (2,)  # an ensemble names its parts' versions


@pytest.mark.slow
def test_three_separate_networks_become_three_models_and_one_ensemble(pose_checkpoint: Make, tmp_path: Path) -> None:
    radii = [{"name": "small", "kind": "disc", "sigma": 1.0}, {"name": "large", "kind": "softmax", "sigma": 2.0}]
    paths = [pose_checkpoint(seed, radii=[r], presets=["lsp14"]) for seed, r in enumerate(radii)]
    code, output = run(*paths, "--repository", tmp_path / "models", "--name", "body", "--precision", "fp32")
    assert code == 0, output
    configs = read_repository(tmp_path / "models")
    check_ensembles(configs)
    assert {"body", "body_small", "body_large", "body_fusion", "body_flip"} <= set(configs)
    assert "body_heads" not in configs
    assert configs["body"].metadata.parameters["radii"] == "small,large"
    assert [spec.name for spec in configs["body_small"].metadata.outputs] == ["heatmaps"]


def test_checkpoints_that_do_not_belong_together_are_refused(pose_checkpoint: Make) -> None:
    one = [{"name": "large", "kind": "softmax", "sigma": 2.0}]
    two = [{"name": "small", "kind": "disc", "sigma": 1.0}]
    first = pose_checkpoint(radii=one)
    with pytest.raises(ExportError, match="differ in height: 128 and 64"):
        read_checkpoints([first, pose_checkpoint(radii=two, height=64)])
    with pytest.raises(ExportError, match="two radii of one name"):
        read_checkpoints([first, first])
    with pytest.raises(ExportError, match="each has one head"):
        read_checkpoints([first, pose_checkpoint()])


def test_files_that_are_no_checkpoints_are_refused_with_their_name(tmp_path: Path) -> None:
    for name, content in {"text.pt": b"hello", "empty.pt": b""}.items():
        (tmp_path / name).write_bytes(content)
        code, output = run(tmp_path / name, "--repository", tmp_path / "models")
        assert code == 1
        assert name in output.replace("\n", "")
    torch.save({"kind": "other", "recipe": {}, "weights": {}}, tmp_path / "other.pt")
    assert "holds a 'other'" in run(tmp_path / "other.pt")[1]
    assert "not exported" in run(tmp_path / "missing.pt")[1]
    assert not (tmp_path / "models").exists()


def test_check_data_in_coco_format_is_used_where_given(tmp_path: Path, pose_checkpoint: Make) -> None:
    from export.samples import load_samples
    from service.scenes import render_scene, write_coco

    annotations = write_coco((render_scene(seed) for seed in range(5)), tmp_path)
    samples = load_samples((annotations, tmp_path / "images"), [], 4)
    assert samples.name == "annotations"
    assert len(samples.pictures) == 4
    assert samples.crops((64, 128), 3).shape == (3, 128, 64, 3)
    assert samples.letterboxed(128).shape == (4, 128, 128, 3)
    with pytest.raises(ExportError, match="missing"):
        load_samples((tmp_path / "missing.json", tmp_path), [], 4)


def test_photographs_give_the_same_joints(
    trunk: Path, exported: Exported, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.installation, "plan_pose", lambda *_: exported.pose)
    annotations, images = photographs / "coco_val.json", photographs / "coco_val"
    code, output = run(trunk, "--repository", tmp_path / "models", "--check-data", annotations, images)
    assert code == 0, output
    card = (tmp_path / "models/pose/MODEL_CARD.md").read_text()
    assert "coco_val" in card
    assert os.sep + "coco_val" not in card


def test_metrics_file_without_an_object_is_refused(trunk: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps([1, 2]))
    code, output = run(trunk, "--repository", tmp_path / "models", "--metrics", tmp_path / "metrics.json")
    assert code == 1
    assert "expected a JSON object" in output
