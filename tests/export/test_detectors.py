"""Every detector of the registry, from recipe to engine. If these fail, one of them cannot be trained or served."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from export.checkpoints import read_checkpoints
from export.installation import ExportRequest, run_export
from export.plans import PlanOptions
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from service.scenes import render_scene, write_coco
from training.datasets.detection import DetectionDataset, collate
from training.detector import DetectorRecipe, load_sets, make_optimizer, train_detector, train_step
from training.networks.detectors import DETECTORS
from training.schedule import cosine_rate

SIDE = 128
OWN: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"width": 8, "pyramid_channels": 16, "head_channels": 32, "proposals": 24},
    "one_stage": {"width": 8, "channels": 16, "proposals": 24},
}
THEIRS: dict[str, Any] = {
    "proposals_before_nms": 60, "refined": 40, "proposals": 24, "training_proposals": 60, "head_samples": 16,
    "anchor_positive": 0.5,
}  # fmt: skip
CASES = [pytest.param(name, {}, marks=() if name in OWN else pytest.mark.slow) for name in sorted(DETECTORS)] + [
    pytest.param("fasterrcnn_mobilenet_v3_large_fpn", {"classes": "coco80"}, marks=pytest.mark.slow)
]


@pytest.fixture(scope="module")
def four_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_coco((render_scene(seed, people=2, size=(160, 120)) for seed in range(4)), folder)
    return folder


def recipe(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    # From scratch, fewer steps give all boxes the same score to five digits: either side then ranks them its own way.
    rate = 0.002 if name in OWN else 0.001 if "mobilenet" in name else 0.0005
    return {
        "train": [{"annotations": str(folder / "annotations.json"), "images": str(folder / "images")}],
        "held_out": 0.0,
        "network": {"name": name, "input_size": SIDE, **OWN.get(name, THEIRS), **changes},
        **({"loss": {"proposals": 24, "head_samples": 16}} if name == "faster_rcnn" else {}),
        "augmentation": {"size": SIDE, "mosaic": 0, "colour": 0, "flip": 0, "scale": [0.999, 1.001], "cache_side": 160},
        "batch_size": 4, "steps": 20 if name in OWN else 3, "warmup_steps": 2, "learning_rate": rate,
        "precision": "fp32", "device": "cpu", "box_threshold": 0.07,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_loss_falls_when_four_pictures_are_learnt_by_heart(
    four_scenes: Path, name: str, changes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    checked = DetectorRecipe.model_validate(recipe(four_scenes, name, changes))
    network = checked.network.build()
    optimizer = make_optimizer(network, checked)
    samples = DetectionDataset(load_sets(checked)[0], checked.augmentation, 0, 4)
    images, targets = collate([samples[index] for index in range(4)])
    assert sum(len(target.people) for target in targets) >= 4
    count = 60 if name in OWN else 20
    rates = [cosine_rate(step, peak=checked.learning_rate, warmup=6, steps=count) for step in range(count)]
    losses = [
        train_step(network, optimizer, images, targets, rate, checked, torch.device("cpu"))["loss"] for rate in rates
    ]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_trained_and_exported_it_answers_as_trained(
    four_scenes: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe(four_scenes, name, changes)))
    checkpoint = train_detector(written, tmp_path / "run")
    repository = tmp_path / "repository"
    said = io.StringIO()
    # Raises where the exported graph differs by more than the limits from the trained network.
    run_export(
        ExportRequest((checkpoint,), repository, PlanOptions(precision="fp32"), check_count=6), Console(file=said)
    )
    assert "ok" in said.getvalue()
    source = read_checkpoints([checkpoint])[1]
    assert source is not None
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)

    async def ask() -> tuple[dict[str, Any], dict[str, str]]:
        engine = EmbeddedEngine(repository, RuntimeSettings(spinning=False))
        await engine.start()
        try:
            metadata = await engine.metadata("person_detector")
            return await engine.infer("person_detector", {"images": images}), dict(metadata.parameters)
        finally:
            await engine.close()

    answer, parameters = asyncio.run(ask())
    assert answer["boxes"].shape == (3, 24, 4)
    assert parameters["box_threshold"] == "0.07", "the recipe's threshold is served"
    with torch.no_grad():
        _, scores = source.network.detect(torch.from_numpy(images))
    assert np.abs(answer["scores"] - scores.numpy()).max() < 0.02
    assert source.recipe.network.description in (repository / "person_detector" / "MODEL_CARD.md").read_text()
