"""If these fail, a killed run loses work, or a recipe cannot be repeated, or its mistakes go unnoticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from training.pose import PoseRecipe, load_pose_checkpoint, train_pose
from training.recipe import RecipeError, read_recipe
from training.run import RunError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path: Path, rendered_data: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    source = {"annotations": str(rendered_data / "annotations.json"), "images": str(rendered_data / "images")}
    settings = {
        "data": [source],
        "width": 64,
        "height": 64,
        "network": {"stacks": 1, "width": 16, "dense": True},
        "radii": [{"name": "medium", "kind": "softmax", "sigma": 1.5}, {"name": "small", "kind": "disc", "sigma": 1.5}],
        "steps": 12,
        "batch": 4,
        "warmup": 2,
        "holdout": 0.2,
        "save_every": 4,
        "watch_every": 6,
        "threads": 1,
        "precision": "32-true",
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["weights"])


def test_a_seed_makes_a_run_repeatable_and_tells_its_story(recipe: Path, tmp_path: Path) -> None:
    first = _weights(train_pose(recipe, tmp_path / "a"))
    again = _weights(train_pose(recipe, tmp_path / "b"))
    other = _weights(train_pose(recipe, tmp_path / "c", ["seed=1"]))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)
    story = json.loads((tmp_path / "a" / "model.json").read_text())
    assert story["recipe"]["steps"] == 12
    assert story["kind"] == "pose"
    assert story["data"]["sets"] == ["annotations"]
    assert 0 <= story["metrics"]["oks/annotations"] <= 1
    assert list((tmp_path / "a" / "curves").glob("events.*"))


def test_a_killed_run_goes_on_to_the_very_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole = _weights(train_pose(recipe, tmp_path / "whole"))
    killed = tmp_path / "killed"
    # Enough steps that it cannot end before it is killed; the schedule is the recipe's own after resuming.
    command = [sys.executable, "-m", "training", "pose", "--recipe", str(recipe), "--output", str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.time() + 120
    while not (killed / "last.pt").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    step = torch.load(killed / "last.pt", weights_only=True)["step"]
    if step == 12:
        pytest.fail("the run ended before it was killed: nothing was resumed")
    resumed = _weights(train_pose(recipe, killed, resume=True))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_an_unfinished_run_is_never_overwritten(recipe: Path, tmp_path: Path) -> None:
    train_pose(recipe, tmp_path / "run", ["steps=4"])
    with pytest.raises(RunError, match="--resume"):
        train_pose(recipe, tmp_path / "run", ["steps=4"])


def test_it_learns_what_it_is_shown(recipe: Path, tmp_path: Path) -> None:
    """On a handful of people the loss must fall far: a wrong target, mask or gradient would keep it up."""
    path = train_pose(recipe, tmp_path / "run", [
        "steps=250", "batch=8", "holdout=0.0", "learning_rate=0.003", "ema=0.9", "min_joints=10",
        "radii=[{name: medium, kind: softmax, sigma: 1.5}]",
        "augmentation={rotation: 0, scale: 0, shift: 0, flip: 0, half_body: 0, colour: 0, grey: 0, blur: 0, erase: 0}",
    ])  # fmt: skip
    from training.datasets.coco import read_coco
    from training.datasets.union import pose_samples
    from training.pose import held_out_oks

    loaded, network = load_pose_checkpoint(path)
    people, _, _ = pose_samples([read_coco(s) for s in loaded.data], loaded.joints, min_joints=10, holdout=0)
    assert held_out_oks(network, loaded, people)["oks/annotations"] > 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("width=100", "multiples of 32"),
        ("presets=[coco18]", "coco18"),
        ("skeleton=coco17", "lsp14 needs joints that coco17 lacks"),
        ("stepps=3", "stepps"),
        ("radii=[]", "radii"),
        ("batch", "field=value"),
    ],
)
def test_a_wrong_recipe_is_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe, PoseRecipe, ["presets=[lsp14]", override])


@pytest.mark.parametrize("name", ["pose_slim.yaml", "pose_firefly.yaml"])
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "/somewhere")
    recipe = read_recipe(ROOT / "training" / "recipes" / name, PoseRecipe)
    assert [r.name for r in recipe.radii] == ["large", "medium", "small"]
