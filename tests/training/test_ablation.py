"""If these fail, an ablation does work twice, hides a failure, or compares with the wrong row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from training.__main__ import app
from training.ablation.ablation import Ablation, AblationError, AblationRecipe, read_ablation
from training.ablation.report import comparison_lines, markdown, mean_and_spread
from training.recipe import RecipeError


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    source = {"annotations": str(data / "annotations.json"), "images": str(data / "images")}
    return {
        "seeds": [0, 1],
        "pose": {
            "data": [source],
            "presets": ["coco17"],
            "width": 64,
            "height": 64,
            "network": {"stacks": 1, "width": 16, "dense": True},
            "radii": [{"name": "medium", "kind": "softmax", "sigma": 1.5}],
            "steps": 2,
            "batch": 4,
            "warmup": 1,
            "holdout": 0,
            "threads": 1,
        },
        "trainings": {"base": {}, "warm": {"init": "{folder}/base-{seed}/model.pt"}},
        "data": [source],
        "detector_data": [source],
        "comparisons": [
            {
                "question": "start",
                "source": "nobody",
                "rows": [{"label": "cold"}, {"label": "warm", "training": "warm"}],
            }
        ],
        **changes,
    }


def write(folder: Path, fields: dict[str, Any]) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def put(ablation: Ablation, row: int, seed: int, precision: float) -> None:
    """Figures as a measurement leaves them."""
    path = ablation._figures_path(ablation.recipe.comparisons[0].rows[row], seed)
    measured = {"keypoints": {"AP": precision, "AP50": 2 * precision}, "pck": {"mean": 3 * precision}}
    path.write_text(json.dumps({"sets": {"a": measured}}))


def test_the_table_compares_seed_by_seed(rendered_data: Path, tmp_path: Path) -> None:
    ablation = Ablation(AblationRecipe.model_validate(recipe(rendered_data)), tmp_path)
    for seed, (cold, warm) in enumerate([(0.10, 0.13), (0.20, 0.21)]):
        put(ablation, 0, seed, cold)
        put(ablation, 1, seed, warm)
    first, second = comparison_lines(ablation, ablation.recipe.comparisons[0])
    # By hand: means 15 and 17; differences 3 and 1, mean 2, deviation sqrt(2).
    assert first.cells == ("15.0 ± 7.1", "", "30.0 ± 14.1", "45.0 ± 21.2", "", "2")
    assert second.cells == ("17.0 ± 5.7", "+2.0 ± 1.4", "34.0 ± 11.3", "51.0 ± 17.0", "+6.0 ± 4.2", "2")
    assert "| warm | 17.0 ± 5.7 |" in markdown(ablation)


def test_a_row_without_figures_says_so(rendered_data: Path, tmp_path: Path) -> None:
    ablation = Ablation(AblationRecipe.model_validate(recipe(rendered_data)), tmp_path)
    assert comparison_lines(ablation, ablation.recipe.comparisons[0])[1].cells[0] == "not measured"
    mean, spread = mean_and_spread([0.5])
    assert mean == 0.5
    assert math.isnan(spread)


def test_a_stopped_ablation_goes_on_and_a_warm_start_waits(rendered_data: Path, tmp_path: Path) -> None:
    path = write(tmp_path, recipe(rendered_data, seeds=[0]))
    arguments = ["ablate", "--recipe", str(path), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--only", "base"])
    assert result.exit_code == 0, result.output
    base = tmp_path / "out" / "base-0" / "model.pt"
    made = base.stat().st_mtime_ns
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert base.stat().st_mtime_ns == made
    assert "initialised" in (tmp_path / "out" / "warm-0.log").read_text()
    measured = sorted(file.name for file in (tmp_path / "out" / "measured").iterdir())
    assert measured == ["base_truth-0.json", "warm_truth-0.json"]
    assert "cold" in result.output


def test_a_training_that_fails_is_named_with_its_log(rendered_data: Path, tmp_path: Path) -> None:
    fields = recipe(rendered_data, trainings={"base": {"min_joints": 99}}, seeds=[0])
    fields["comparisons"][0]["rows"] = [{"label": "a"}, {"label": "b", "options": {"flip": True}}]
    ablation = Ablation(read_ablation(write(tmp_path, fields)), tmp_path / "out")
    with pytest.raises(AblationError, match=r"base-0 ended with 1: see .*base-0\.log"):
        ablation.train(ablation.jobs(), 1)


def test_a_training_that_cannot_be_is_named_before_the_first_one_starts(rendered_data: Path, tmp_path: Path) -> None:
    fields = recipe(rendered_data, trainings={"base": {}, "warm": {"width": 65}}, seeds=[0])
    ablation = Ablation(read_ablation(write(tmp_path, fields)), tmp_path / "out")
    with pytest.raises(AblationError, match=r"training warm: .*multiples"):
        ablation.train(ablation.jobs(), 1)
    assert not list((tmp_path / "out").glob("base-*"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "x", "training": "nothing"}, "no training nothing"),
        ({"label": "x", "options": {"nms_ious": 1}}, "nms_ious"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_before_anything_is_trained(
    rendered_data: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    fields = recipe(rendered_data)
    fields["comparisons"][0]["rows"].append(row)
    with pytest.raises(RecipeError, match=message):
        read_ablation(write(tmp_path, fields))


def test_a_checkpoint_from_elsewhere_is_measured_and_not_trained(rendered_data: Path, tmp_path: Path) -> None:
    """What ships is compared with its techniques switched off: the very file, not a training like it."""
    ablation = Ablation(read_ablation(write(tmp_path, recipe(rendered_data, seeds=[0]))), tmp_path / "trained")
    ablation.train(ablation.jobs(["base"]), 1)
    shipped = tmp_path / "trained" / "base-0" / "model.pt"
    rows = [
        {"label": "as it ships", "training": "shipped"},
        {"label": "no sub-pixel step", "training": "shipped", "refinement": "none"},
    ]
    changes: dict[str, Any] = {
        "seeds": [0], "pose": {}, "trainings": {}, "checkpoints": {"shipped": str(shipped)},
        "comparisons": [{"question": "switched off", "source": "nobody", "rows": rows}],
    }  # fmt: skip
    measured = Ablation(read_ablation(write(tmp_path, recipe(rendered_data, **changes))), tmp_path / "measured")
    assert measured.jobs() == []
    measured.measure()
    first, second = comparison_lines(measured, measured.recipe.comparisons[0])
    assert first.cells[-1] == second.cells[-1] == "1"
    assert not list((tmp_path / "measured").glob("shipped*"))
    gone = {**changes, "checkpoints": {"shipped": str(tmp_path / "nowhere.pt")}}
    lost = Ablation(read_ablation(write(tmp_path, recipe(rendered_data, **gone))), tmp_path / "lost")
    with pytest.raises(AblationError, match=r"shipped.*nowhere\.pt"):
        lost.measure()
    with pytest.raises(RecipeError, match="seeds names 2"):
        read_ablation(write(tmp_path, recipe(rendered_data, **{**changes, "seeds": [0, 1]})))
