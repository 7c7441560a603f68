"""If these fail, a failed or repeated export leaves a server with half a model, the wrong weights, or none."""

import os
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from export.checkpoints import ExportError
from export.configs import EnsembleStep, ModelPlan, config_text
from export.repository import next_version, publish, staging_folder, version_numbers, write_models
from service.engines.base import TensorSpec
from service.engines.config import read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.ensembles import check_ensembles


def network(name: str, size: int = 4) -> ModelPlan:
    """Adds its rows to themselves."""
    shape = ["batch", size]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x, y = TensorSpec("x", "float32", (size,)), TensorSpec("y", "float32", (size,))
    return ModelPlan(name, (x,), (y,), 8, {"kind": "part"}, model)


def ensemble(name: str, part: str, size: int = 4) -> ModelPlan:
    x, y = TensorSpec("x", "float32", (size,)), TensorSpec("y", "float32", (size,))
    return ModelPlan(name, (x,), (y,), 8, {"kind": "pose"}, steps=[EnsembleStep(part, {"x": "x"}, {"y": "y"})])


def install(repository: Path, *plans: ModelPlan, keep: int = 2) -> None:
    with staging_folder(repository) as staged:
        write_models(staged, plans, next_version(repository, [plan.name for plan in plans]))
        publish(staged, repository, keep)


def contents(repository: Path) -> dict[str, bytes]:
    return {str(p.relative_to(repository)): p.read_bytes() for p in sorted(repository.rglob("*")) if p.is_file()}


def test_models_written_are_models_that_the_engine_reads(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part"), ensemble("whole", "part"))
    configs = read_repository(tmp_path / "models")
    check_ensembles(configs)
    assert configs["part"].metadata.max_batch_size == 8
    assert configs["part"].batching.max_queue == 512
    assert configs["whole"].metadata.parameters == {"kind": "pose"}
    assert [path.name for path in tmp_path.iterdir()] == ["models"], "nothing is left beside the repository"


def test_an_ensembles_version_survives_git_which_keeps_no_empty_folders(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part"), ensemble("whole", "part"))
    assert [path.name for path in (tmp_path / "models/whole/1").iterdir()] == [".gitkeep"]


def test_each_export_is_the_next_version_and_old_ones_go(tmp_path: Path) -> None:
    for _ in range(4):
        install(tmp_path / "models", network("part"), ensemble("whole", "part"), keep=2)
    assert version_numbers(tmp_path / "models/part") == [3, 4]
    assert version_numbers(tmp_path / "models/whole") == [3, 4]
    assert read_repository(tmp_path / "models")["part"].version == 4
    install(tmp_path / "models", network("part"), keep=1)
    assert version_numbers(tmp_path / "models/part") == [5]


def test_what_is_exported_together_carries_one_number(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part"))
    install(tmp_path / "models", network("part"), ensemble("whole", "part"))
    assert version_numbers(tmp_path / "models/whole") == [2]


def test_versions_with_other_tensors_go_since_one_config_cannot_fit_both(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part", 4))
    install(tmp_path / "models", network("part", 6))
    assert version_numbers(tmp_path / "models/part") == [2]


def test_an_export_that_would_break_another_models_wiring_is_refused(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part", 4), ensemble("whole", "part", 4))
    before = contents(tmp_path / "models")
    with pytest.raises(ExportError, match=r"would not be servable: /whole/config\.pbtxt.*\[-1, 6\]"):
        install(tmp_path / "models", network("part", 6))
    assert contents(tmp_path / "models") == before


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_full_disk_on_the_way_undoes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    repository = tmp_path / "models"
    install(repository, network("part"), ensemble("whole", "part"))
    before = contents(repository)
    calls = 0

    def breaks(real: object) -> object:
        def call(source: Path, target: Path) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            real(source, target)  # type: ignore[operator]

        return call

    monkeypatch.setattr(os, "rename", breaks(os.rename))
    monkeypatch.setattr(os, "replace", breaks(os.replace))
    # Versions and configs of "part" and "whole", and "new" in one go: five steps.
    if failing <= 5:
        with pytest.raises(ExportError, match="No space left"):
            install(repository, network("part"), ensemble("whole", "part"), network("new"))
        assert contents(repository) == before
        assert not (repository / "new").exists()
    else:
        install(repository, network("part"), ensemble("whole", "part"), network("new"))
        assert version_numbers(repository / "part") == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


async def test_the_next_start_serves_the_new_version(tmp_path: Path) -> None:
    install(tmp_path / "models", network("part"))
    install(tmp_path / "models", network("part"))
    engine = EmbeddedEngine(tmp_path / "models")
    await engine.start()
    assert (await engine.metadata("part")).versions == (1, 2)
    await engine.close()


def test_config_text_is_the_same_every_time() -> None:
    plan = ensemble("whole", "part")
    assert config_text(plan) == config_text(plan)
    assert config_text(plan).startswith("# Written by")
