"""If these fail, a killed run loses work, or a recipe cannot be repeated, or its mistakes go unnoticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning_fabric import Fabric
from typer.testing import CliRunner

from training.__main__ import app
from training.datasets.coco import read_coco
from training.datasets.union import pose_samples
from training.pose import PoseRecipe, build_pose_network, crop_source, held_out_oks, load_pose_checkpoint, train_pose
from training.profiling import profile_training
from training.recipe import RecipeError, read_recipe
from training.run import RunError
from training.trainer import Trainer, TrainingError

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
    (name,) = story["data"]["sets"]
    assert 0 <= story["metrics"][f"oks/{name}"] <= 1
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
    loaded, network = load_pose_checkpoint(path)
    people, _, _ = pose_samples([read_coco(s) for s in loaded.data], loaded.joints, min_joints=10, holdout=0)
    (oks,) = held_out_oks(network, loaded, people).values()
    assert oks > 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("width=100", "multiples of 32"),
        ("progressive=[{until: 0.5, width: 100, height: 128}]", "multiples of 32.*100x128"),
        ("progressive=[{until: 0.5, width: 64, height: 64}, {until: 0.4, width: 96, height: 96}]", r"0\.5, 0\.4"),
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


def test_a_recipe_may_say_things_the_short_way(recipe: Path) -> None:
    short = read_recipe(recipe, PoseRecipe, ["warmup=7", "schedule=linear", "optimiser=adam"])
    long = read_recipe(recipe, PoseRecipe, ["optimiser.kind=adam", "warmup=7"])
    assert (short.schedule.kind, short.schedule.warmup, short.optimiser.kind) == ("linear", 7, "adam")
    assert long.schedule.warmup == 7
    # What a checkpoint holds is a recipe again.
    assert PoseRecipe.model_validate(short.model_dump(mode="json")) == short
    with pytest.raises(RecipeError, match="twice"):
        read_recipe(recipe, PoseRecipe, ["warmup=7", "schedule={warmup: 3}"])


def test_mistakes_are_one_line_on_the_command_line(recipe: Path, tmp_path: Path) -> None:
    """A picture that is missing is found before the first step, and named."""
    settings = yaml.safe_load(recipe.read_text())
    source = dict(settings["data"][0], images=str(tmp_path))
    recipe.write_text(yaml.safe_dump({**settings, "data": [source]}))
    result = CliRunner().invoke(app, ["pose", "--recipe", str(recipe), "--output", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.stderr.startswith("pose: ")
    assert str(tmp_path) in result.stderr
    assert "missing" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_loss_that_is_no_number_stops_the_run(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+.*learning_rate"):
        train_pose(recipe, tmp_path / "run", ["learning_rate=1e30", "clip=null", "optimiser=sgd", "holdout=0"])


@pytest.mark.parametrize("size", [(192, 256), (256, 256), (288, 384), (384, 384), (448, 448)])
def test_the_inputs_of_the_five_systems_train(recipe: Path, size: tuple[int, int]) -> None:
    """One step each: width and height reach crops, maps and targets the right way round."""
    chosen = read_recipe(recipe, PoseRecipe, [f"width={size[0]}", f"height={size[1]}", "batch=2", "steps=1"])
    fabric = Fabric(accelerator="cpu", devices=1)
    people, repeats, _ = pose_samples([read_coco(s) for s in chosen.data], chosen.joints, min_joints=10, holdout=0)
    trainer = Trainer(chosen, fabric, build_pose_network(chosen))
    (batch,) = trainer.batches(crop_source(chosen, fabric, people), repeats)
    assert batch.crops.shape == (2, size[1], size[0], 3)
    assert trainer.optimise(batch)["loss/all"] > 0


def test_crops_grow_as_the_recipe_says(recipe: Path, tmp_path: Path) -> None:
    """Small crops first; every joint moves with them, and the run ends at the size that is exported."""
    sizes = "progressive=[{until: 0.3, width: 32, height: 64}, {until: 0.5, width: 64, height: 96}]"
    # Nothing is drawn but the person: the same crop in each size.
    still = (
        "augmentation={rotation: 0, scale: 0, shift: 0, flip: 0, half_body: 0, colour: 0, grey: 0, blur: 0, erase: 0}"
    )
    chosen = read_recipe(recipe, PoseRecipe, [sizes, still, "batch=2", "steps=10", "width=96", "height=128"])
    fabric = Fabric(accelerator="cpu", devices=1)
    people, repeats, _ = pose_samples([read_coco(s) for s in chosen.data], chosen.joints, min_joints=10, holdout=0)
    trainer = Trainer(chosen, fabric, build_pose_network(chosen))
    source = crop_source(chosen, fabric, people)
    batches = list(trainer.batches(source, repeats))
    shapes = [tuple(batch.crops.shape[1:3]) for batch in batches]
    assert shapes == [(64, 32)] * 3 + [(96, 64)] * 2 + [(128, 96)] * 5
    assert trainer.optimise(batches[0])["loss/all"] > 0
    draws, indices = np.arange(2), np.arange(2)
    small, large = source.batch(draws, indices, (48, 64)), source.batch(draws, indices)
    # Pixel centres: x = (x_half + 0.5) * 2 - 0.5.
    seen = (small.present > 0) & (large.present > 0)
    assert seen.any()
    assert torch.allclose((small.points[seen] + 0.5) * 2 - 0.5, large.points[seen], atol=1e-3)
    assert PoseRecipe.model_validate(chosen.model_dump(mode="json")).size_at(9) == (96, 128)


def test_the_profile_counts_all_of_a_step(recipe: Path) -> None:
    profile = profile_training(recipe, ["width=128", "height=128"], steps=4)
    assert list(profile.seconds) == ["data", "forward", "loss", "backward", "clipping", "optimiser", "average"]
    assert 0.3 < profile.network_share < 1
    # Parts and whole steps are timed apart: the same rate, as far as a busy machine allows.
    by_parts = profile.batch * profile.steps / sum(profile.seconds.values())
    assert by_parts == pytest.approx(profile.crops_per_second, rel=0.9)
    # 3 passes of 2 operations for each of the multiply-adds; the 7x7 stem alone has 64 * 64 * 16 * 147 of them.
    assert profile.flops > 6 * 64 * 64 * 16 * 147


@pytest.mark.parametrize("name", ["pose_slim.yaml", "pose_firefly.yaml"])
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "/somewhere")
    recipe = read_recipe(ROOT / "training" / "recipes" / name, PoseRecipe)
    assert [r.name for r in recipe.radii] == ["large", "medium", "small"]
