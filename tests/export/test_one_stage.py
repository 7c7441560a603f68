"""If this fails, the service finds other people with a one-stage detector than training did."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from export.checkpoints import read_checkpoints
from export.installation import ExportRequest, run_export
from export.plans import PlanOptions
from service.app import create_app
from service.engines.embedded import EmbeddedEngine
from service.letterbox import letterbox
from service.scenes import render_scene, write_coco
from service.settings import Settings
from service.suppression import iou_matrix
from training.detector import train_detector

SIDE = 128
SEEDS = range(4)


@pytest.mark.slow
async def test_people_of_learnt_pictures_are_found_over_http(
    tmp_path: Path, pose_checkpoint: Callable[..., Path]
) -> None:
    scenes = [render_scene(seed, people=2, size=(160, 120)) for seed in SEEDS]
    write_coco(scenes, tmp_path / "data")
    recipe = {
        "train": [{"annotations": str(tmp_path / "data/annotations.json"), "images": str(tmp_path / "data/images")}],
        "held_out": 0.0,
        "network": {"name": "one_stage", "width": 8, "channels": 16, "input_size": SIDE, "proposals": 60},
        "augmentation": {"size": SIDE, "mosaic": 0, "colour": 0, "flip": 0, "scale": [0.999, 1.001], "cache_side": 160},
        "batch_size": 4, "steps": 250, "warmup_steps": 10, "learning_rate": 0.004, "ema_decay": 0.9,
        "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    checkpoint = train_detector(tmp_path / "recipe.yaml", tmp_path / "run")
    repository, said = tmp_path / "repository", Console(file=io.StringIO())
    request = ExportRequest((checkpoint, pose_checkpoint()), repository, PlanOptions(precision="fp32"), check_count=6)
    # In a thread: it has an event loop of its own.
    await asyncio.to_thread(run_export, request, said)
    source = read_checkpoints([checkpoint])[1]
    assert source is not None

    application = create_app(Settings(cpu_threads=1), EmbeddedEngine(repository))
    async with application.router.lifespan_context(application):
        await application.state.service.readiness.wait()
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://pose") as client:
            for scene in scenes:
                png = cv2.imencode(".png", scene.image[..., ::-1])[1].tobytes()
                # The pose network knows nothing: its joints must not decide who is one person.
                answer = await client.post("/v1/pose?nms_oks=1&box_threshold=0.3", files={"image": png}, timeout=60)
                assert answer.status_code == 200, answer.text
                boxes = np.array([found["bbox"] for found in answer.json()["annotations"]], np.float64).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                people = np.array([person.box for person in scene.people])
                assert (iou_matrix(people, boxes).max(1) > 0.6).all()
                image, placed = letterbox(scene.image, SIDE)
                with torch.no_grad():
                    trained, _ = source.network.detect(torch.from_numpy(image)[None])
                near = np.abs(boxes[:, None] - placed.boxes_to_image(trained[0].numpy())).max(-1).min(1)
                assert near.max() < 1.0
