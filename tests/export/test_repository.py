"""If these fail, a failed or repeated export leaves a server with half a model, the wrong weights, or none."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from export.checkpoints import ExportError
from export.configs import NETWORK_QUEUE, Accelerator, EnsembleStep, ModelPlan, config_text
from export.configure import ConfigureRequest, configure
from export.repository import next_version, publish, staging_folder, version_numbers, write_models
from service.engines.base import TensorSpec
from service.engines.config import read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.ensembles import check_ensembles
from tests.conftest import ROOT


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.export.test_repository import ensemble, install, network

left = int(sys.argv[2])
def dies(real):
    def call(source, target):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
    return call

os.rename, os.replace = dies(os.rename), dies(os.replace)
install(Path(sys.argv[1]), network("part"), ensemble("whole", "part"), network("new"))
"""


@pytest.mark.parametrize("steps", range(6))
def test_an_export_that_is_killed_leaves_what_was_served_and_is_undone_by_the_next(tmp_path: Path, steps: int) -> None:
    repository = tmp_path / "models"
    install(repository, network("part"), ensemble("whole", "part"))
    before = contents(repository)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(repository), str(steps)], cwd=ROOT, check=False)
    if steps == 5:
        assert killed.returncode == 0
        assert version_numbers(repository / "whole") == [1, 2]
        return
    assert killed.returncode == -9
    configs = read_repository(repository)
    check_ensembles(configs)
    assert [step.version for step in configs["whole"].steps] == [1 if steps < 5 else 2]
    with staging_folder(repository):
        assert contents(repository) == before
        assert not (repository / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_an_export_that_is_still_at_work_is_not_undone_by_another(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    with staging_folder(repository) as first, staging_folder(repository) as second:
        assert first.is_dir()
        assert second.is_dir()


def test_an_ensemble_names_the_versions_of_its_parts(tmp_path: Path) -> None:
    """New parts are without effect until the ensemble's own config is replaced: all change at that moment."""
    repository = tmp_path / "models"
    install(repository, network("part"), ensemble("whole", "part"))
    assert [step.version for step in read_repository(repository)["whole"].steps] == [1]
    assert read_repository(repository)["whole"].metadata.versions == (1,)
    install(repository, network("part"), ensemble("whole", "part"))
    assert [step.version for step in read_repository(repository)["whole"].steps] == [2]
    assert read_repository(repository)["whole"].metadata.versions == (2,)
    assert read_repository(repository)["part"].metadata.versions == (1, 2)


def test_ensembles_follow_when_a_part_alone_gets_a_new_version(tmp_path: Path) -> None:
    """As a quantised network does: without it the ensemble would go on with the old one."""
    repository = tmp_path / "models"
    install(repository, network("part"), network("other"), ensemble("whole", "part"), ensemble("else", "other"))
    install(repository, network("part"))
    configs = read_repository(repository)
    assert [step.version for step in configs["whole"].steps] == [2]
    assert version_numbers(repository / "whole") == [1, 2]
    assert version_numbers(repository / "else") == [1]
    check_ensembles(configs)


def test_what_an_operator_has_set_stays_in_the_next_version(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    install(repository, replace(network("part"), queue=NETWORK_QUEUE))
    request = ConfigureRequest(repository, tmp_path / "trt", Accelerator(cache="/engines"), gpu_memory=2**30)
    configure(request)
    install(tmp_path / "trt", replace(network("part", 6), queue=NETWORK_QUEUE))
    text = (tmp_path / "trt/part/config.pbtxt").read_text()
    assert '"/engines/part"' in text
    assert '"x:8x6"' in text
    assert '"1073741824"' in text


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
