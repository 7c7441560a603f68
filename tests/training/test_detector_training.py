"""If these fail, a detector run cannot be repeated, a killed run is lost or goes on wrongly, or its AP is not true."""

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

from training.box_precision import box_precision
from training.datasets.pictures import Picture
from training.detector import DetectorRecipe, load_sets, train_detector
from training.networks.faster_rcnn import FasterRcnn
from training.recipe import RecipeError, read_recipe
from training.run import RunError
from training.schedule import cosine_rate

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5


@pytest.fixture
def recipe(rendered_data: Path, tmp_path: Path) -> Path:
    """A recipe that trains a very small detector in seconds."""
    path = tmp_path / "recipe.yaml"
    content = {
        "train": [{"annotations": str(rendered_data / "annotations.json"), "images": str(rendered_data / "images")}],
        "held_out": 0.0,
        "network": {"width": 8, "pyramid_channels": 8, "head_channels": 16, "input_size": 128, "proposals": 20},
        "loss": {"proposals": 20, "head_samples": 8},
        "augmentation": {"size": 128, "cache_side": 128},
        "batch_size": 2,
        "steps": STEPS,
        "warmup_steps": 2,
        "precision": "fp32",
        "device": "cpu",
        "save_every": 1,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["weights"]
    return loaded


@pytest.fixture
def one_thread() -> None:
    """Sums of several threads depend on their order."""
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread")
def test_same_seed_gives_the_same_weights_and_another_seed_others(recipe: Path, tmp_path: Path) -> None:
    first = weights(train_detector(recipe, tmp_path / "a"))
    again = weights(train_detector(recipe, tmp_path / "b"))
    other = weights(train_detector(recipe, tmp_path / "c", ["seed=1"]))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    story = json.loads((tmp_path / "a" / "model.json").read_text())
    assert story["kind"] == "detector"
    assert story["steps"] == STEPS
    assert list((tmp_path / "a" / "curves").iterdir())


@pytest.mark.slow
def test_killed_run_goes_on_as_if_nothing_had_happened(recipe: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training", "detector", "--recipe", str(recipe), "--output"]
    whole = [*command, str(tmp_path / "whole"), "--set", "steps=12"]
    subprocess.run(whole, cwd=ROOT, env=environment, check=True, capture_output=True)

    killed = [*command, str(tmp_path / "killed"), "--set", "steps=12"]
    process = subprocess.Popen(killed, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "last.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 12
    assert not (tmp_path / "killed" / "model.pt").exists()

    refused = subprocess.run(killed, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    subprocess.run([*killed, "--resume"], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert torch.load(checkpoint, weights_only=True)["step"] == 12
    expected, found = weights(tmp_path / "whole" / "model.pt"), weights(tmp_path / "killed" / "model.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_is_never_overwritten(recipe: Path, tmp_path: Path) -> None:
    train_detector(recipe, tmp_path / "run", ["steps=1"])
    with pytest.raises(RunError, match="--resume"):
        train_detector(recipe, tmp_path / "run", ["steps=1"])


def test_wrong_recipe_names_the_field(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"loss\.head_sample"):
        train_detector(recipe, tmp_path / "run", ["loss.head_sample=3"])


@pytest.mark.parametrize(
    "name",
    [
        "detector_light",
        "detector_r50",
        "detector_r50_v2",
        "detector_mobilenet",
        "detector_megvii",
        "detector_one_stage",
    ],
)
def test_recipes_of_the_repository_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "/data")
    recipe = read_recipe(ROOT / "training" / "recipes" / f"{name}.yaml", DetectorRecipe)
    assert all("_val" not in source.annotations.name for source in recipe.train)


@pytest.mark.slow
def test_resnet50_recipe_builds_a_network_that_detects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "/data")
    recipe = read_recipe(ROOT / "training" / "recipes" / "detector_r50.yaml", DetectorRecipe)
    network = FasterRcnn(recipe.network).eval()
    with torch.no_grad():
        boxes, scores = network.detect(torch.zeros(1, 128, 128, 3, dtype=torch.uint8))
    assert boxes.shape == (1, 200, 4)
    assert scores.shape == (1, 200)


def test_held_out_pictures_are_never_trained_on(recipe: Path) -> None:
    checked = read_recipe(recipe, DetectorRecipe, ["held_out=0.5"])
    ((_, train),), measure = load_sets(checked)
    assert len(train) + len(measure) == 8
    assert train
    assert measure
    assert not any(np.array_equal(a().image, b.image) for a in train for b in measure)


def test_rate_warms_up_and_ends_near_zero(recipe: Path) -> None:
    checked = read_recipe(recipe, DetectorRecipe, ["steps=100", "warmup_steps=10", "learning_rate=0.5"])
    rates = [
        cosine_rate(step, peak=checked.learning_rate, warmup=checked.warmup_steps, steps=checked.steps)
        for step in range(101)
    ]
    assert rates[0] == pytest.approx(0.05)
    assert rates[10] == pytest.approx(0.5)
    assert max(rates) == rates[10]
    assert rates[55] == pytest.approx(0.5 * 0.505)
    assert rates[100] == pytest.approx(0.005)


def picture(people: list[list[float]], crowds: list[list[float]]) -> Picture:
    as_boxes = [np.array(boxes, np.float32).reshape(-1, 4) for boxes in (people, crowds)]
    return Picture(np.zeros((100, 100, 3), np.uint8), as_boxes[0], as_boxes[1], True, 1.0)


def test_ap_of_known_answers() -> None:
    people = [[10.0, 10.0, 30.0, 60.0], [50.0, 10.0, 70.0, 60.0]]
    pictures = [picture(people, []), picture([], [[0.0, 0.0, 100.0, 100.0]])]
    boxes, scores = np.array(people, np.float32), np.array([0.9, 0.8], np.float32)
    in_crowd = (np.array([[20, 20, 40, 80]], np.float32), np.array([0.99], np.float32))
    perfect = box_precision(pictures, [(boxes, scores), in_crowd])
    assert perfect == pytest.approx({"AP": 1.0, "AP50": 1.0, "AR": 1.0})
    # One of two found: precision 1 up to recall 0.5, on 51 of pycocotools' 101 recall points.
    assert box_precision(pictures, [(boxes[:1], scores[:1]), in_crowd])["AP50"] == pytest.approx(51 / 101)
    # IoU 0.8 passes the thresholds .50 to .75 (0.8 itself is at the edge of rounding).
    shifted = boxes + np.array([0, 0, 0, -10.5], np.float32)
    shifted_ap = box_precision(pictures, [(shifted, scores), in_crowd])
    assert shifted_ap["AP50"] == pytest.approx(1.0)
    assert shifted_ap["AP"] == pytest.approx(0.6)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert box_precision(pictures, [nothing, nothing])["AP50"] == 0
