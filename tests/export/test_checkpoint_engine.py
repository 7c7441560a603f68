"""If these fail, what is measured on a checkpoint is not what the exported models answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export.__main__ import app
from service.engines.base import Array, Engine
from service.engines.embedded import EmbeddedEngine
from service.errors import ModelNotFound
from training.checkpoint_engine import CheckpointEngine

Make = Callable[..., Path]


def ask(engine: Engine, model: str, crops: Array, weights: Array) -> Array:
    async def run() -> Array:
        await engine.start()
        try:
            return (await engine.infer(model, {"crops": crops, "fusion_weights": weights}))["keypoints"]
        finally:
            await engine.close()

    return asyncio.run(run())


def test_checkpoints_answer_as_their_export_does(pose_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint = pose_checkpoint()
    arguments = [str(checkpoint), "--repository", str(tmp_path), "--precision", "fp32", "--check-count", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (5, 128, 64, 3), dtype=np.uint8)
    weights = rng.uniform(0.2, 2, (5, 3)).astype(np.float32)
    for model in ("pose", "pose_flip", "pose_lsp14", "pose_lsp14_flip"):
        exported = ask(EmbeddedEngine(tmp_path), model, crops, weights)
        direct = ask(CheckpointEngine([checkpoint]), model, crops, weights)
        assert direct.shape == exported.shape
        distance = np.linalg.norm(direct[..., :2].astype(float) - exported[..., :2], axis=-1)
        # A flat random map may have two peaks of the same height: the rest has to agree.
        assert np.median(distance) < 0.05, model
        assert np.mean(distance > 0.5) < 0.03, model
        assert np.abs(direct[..., 2].astype(float) - exported[..., 2]).max() < 1e-2


def test_separate_networks_are_fused_in_the_order_given(pose_checkpoint: Make) -> None:
    one = {"name": "wide", "kind": "softmax", "sigma": 2.0}, {"name": "narrow", "kind": "softmax", "sigma": 1.0}
    paths = [pose_checkpoint(seed=seed, radii=[radius]) for seed, radius in enumerate(one)]
    crops = np.random.default_rng(1).integers(0, 256, (3, 128, 64, 3), dtype=np.uint8)
    first = np.tile(np.array([1.0, 0.0], np.float32), (3, 1))
    both = CheckpointEngine(paths)
    assert [radius.name for radius in both.radii] == ["wide", "narrow"]
    alone = ask(CheckpointEngine(paths[:1]), "pose", crops, np.ones((3, 1), np.float32))
    np.testing.assert_allclose(ask(both, "pose", crops, first), alone, atol=1e-3)
    assert not np.allclose(ask(both, "pose", crops, np.ones_like(first)), alone, atol=1.0)


def test_checkpoints_that_cannot_be_fused_are_refused(pose_checkpoint: Make) -> None:
    with pytest.raises(ValueError, match="same skeleton and crop size"):
        CheckpointEngine([pose_checkpoint(), pose_checkpoint(height=64)])


def test_without_a_detector_only_poses_are_known(pose_checkpoint: Make) -> None:
    alone = CheckpointEngine([pose_checkpoint()])
    with pytest.raises(ModelNotFound, match="person_detector"):
        asyncio.run(alone.metadata("person_detector"))
    assert "pose" in asyncio.run(alone.models())
