"""If these fail, a crop size that the published systems use cannot be exported, or is served with joints beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoints import read_checkpoints
from export.plans import PlanOptions, plan_pose
from export.repository import write_models
from export.samples import load_samples
from service.engines.embedded import EmbeddedEngine
from service.presets import pose_preset
from training.held_out import predict_crops

Make = Callable[..., Path]
SIZES = [(192, 256), (256, 256), (288, 384), (384, 384), (448, 448)]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_size_is_exported_and_answers_as_torch_does(
    width: int, height: int, pose_checkpoint: Make, tmp_path: Path
) -> None:
    radius = [{"name": "medium", "kind": "softmax", "sigma": 2.0}]
    checkpoint = pose_checkpoint(width=width, height=height, radii=radius, presets=["union19"], precision="32-true")
    source, _ = read_checkpoints([checkpoint])
    assert source is not None
    write_models(tmp_path, plan_pose(source, PlanOptions(precision="fp32")).models, 1)
    crops = load_samples(None, [], 3).crops((width, height), 3)

    async def ask() -> np.ndarray:
        engine = EmbeddedEngine(tmp_path)
        await engine.start()
        try:
            assert pose_preset(await engine.metadata("pose")).size == (width, height)
            weights = np.ones((len(crops), 1), np.float32)
            return (await engine.infer("pose", {"crops": crops, "fusion_weights": weights}))["keypoints"]
        finally:
            await engine.close()

    found = asyncio.run(ask())
    expected = predict_crops(source.networks[0], source.recipes[0], torch.from_numpy(crops)).numpy()
    assert np.linalg.norm(found[..., :2] - expected[..., :2], axis=-1).max() < 0.1
