"""Training of the person detector: ``python -m training detector --recipe FILE --output DIR``."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.ops import nms

from training.datasets.coco import CocoSet, read_coco
from training.datasets.detection import (
    GREY,
    DetectionAugmentation,
    DetectionDataset,
    Image,
    Picture,
    collate,
    held_out,
    load_picture,
)
from training.networks.detection_loss import DetectorLoss, Target, detector_loss
from training.networks.faster_rcnn import DetectorNetwork, FasterRcnn
from training.recipe import DataSource, Strict, read_recipe
from training.run import Ema, Run, seed_everything


class DetectionSource(DataSource):
    """One data set for the detector."""

    all_labelled: bool = Field(True, description="false: pictures may show people without a box, so no background")


class DetectorRecipe(Strict):
    """All that a detector's training depends on."""

    seed: int = 0
    train: tuple[DetectionSource, ...] = Field(min_length=1)
    held_out: float = Field(0.06, ge=0, lt=1, description="share of the first set kept for measuring while training")
    network: DetectorNetwork = DetectorNetwork()
    loss: DetectorLoss = DetectorLoss()
    augmentation: DetectionAugmentation = DetectionAugmentation()
    batch_size: int = Field(16, ge=1)
    steps: int = Field(ge=1)
    warmup_steps: int = Field(200, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_gradient: float = Field(10.0, gt=0, description="largest norm of a step's gradient")
    ema_decay: float = Field(0.998, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    device: str = Field("auto", description="auto: CUDA where there is one")
    workers: int = Field(0, ge=0, description="processes that prepare samples; 0: the training process itself")
    save_every: int = Field(250, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(500, ge=1, description="steps between measurements on the held-out pictures")


def learning_rate(step: int, recipe: DetectorRecipe) -> float:
    """Linear warm-up, then half a cosine down to 1 % at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_detector(recipe_path: Path, output: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train by a recipe; returns the path of ``model.pt``.

    Raises:
        RecipeError, RunError, DatasetError: what was given cannot be used.
    """
    recipe = read_recipe(recipe_path, DetectorRecipe, overrides)
    seed_everything(recipe.seed)
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if recipe.device == "auto" else recipe.device
    )
    run = Run(output, recipe, resume=resume)
    network = FasterRcnn(recipe.network).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, recipe)
    ema = Ema(network, recipe.ema_decay)
    start = 0
    state = run.load() if resume else None
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema.state = {name: value.to(device) for name, value in state["ema"].items()}
        start = int(state["step"])
    train, measure = load_sets(recipe)
    dataset = DetectionDataset(train, recipe.augmentation, recipe.seed, recipe.steps * recipe.batch_size)
    loader: Iterable[tuple[Tensor, list[Target]]] = DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        sampler=range(start * recipe.batch_size, len(dataset)),
        num_workers=recipe.workers,
        collate_fn=collate,
    )
    metrics: dict[str, float] = {}
    with _progress() as progress:
        task = progress.add_task("detector", total=recipe.steps, completed=start, info="")
        began, mean_loss = time.monotonic(), 0.0
        for step, (images, targets) in enumerate(loader, start):
            values = train_step(network, optimizer, images, targets, learning_rate(step, recipe), recipe, device)
            ema.update(network, step)
            done = step + 1
            mean_loss += 0.02 * (values["loss"] - mean_loss) if mean_loss else values["loss"]
            if done % 20 == 0 or done == recipe.steps:
                speed = (done - start) * recipe.batch_size / (time.monotonic() - began)
                run.scalars(done, {**values, "images_per_second": speed})
                progress.update(task, completed=done, info=f"loss {mean_loss:.3f}  {speed:.1f} img/s")
            if measure and (done % recipe.evaluate_every == 0 or done == recipe.steps):
                metrics = measure_held_out(recipe, ema, measure, device)
                run.scalars(done, metrics)
                progress.console.print(f"step {done}: loss {mean_loss:.3f} " + _listed(metrics))
            if done % recipe.save_every == 0 or done == recipe.steps:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state}
                run.save({**state, "step": done})
    data = [
        {"annotations": s.annotations.name, "pictures": len(p)} for s, (_, p) in zip(recipe.train, train, strict=True)
    ]
    facts: dict[str, Any] = {"steps": recipe.steps, "data": data, "held_out": {"pictures": len(measure), **metrics}}
    path = run.finish("detector", {k: v.cpu() for k, v in ema.state.items()}, facts)
    run.close()
    return path


def make_optimizer(network: FasterRcnn, recipe: DetectorRecipe) -> torch.optim.AdamW:
    """AdamW; biases and batch-norm are not decayed."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def train_step(
    network: FasterRcnn,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: list[Target],
    rate: float,
    recipe: DetectorRecipe,
    device: torch.device,
) -> dict[str, float]:
    """One optimiser step; returns the losses, the gradient's norm and the rate."""
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    images = images.to(device, non_blocking=True)
    targets = [Target(t.people.to(device), t.ignored.to(device)) for t in targets]
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        total, parts = detector_loss(network, images, targets, recipe.loss)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_gradient)
    optimizer.step()
    return {
        "loss": float(total.detach()),
        **{k: float(v) for k, v in parts.items()},
        "gradient": float(norm),
        "rate": rate,
    }


def load_sets(recipe: DetectorRecipe) -> tuple[list[tuple[CocoSet, list[Picture]]], list[Picture]]:
    """Training pictures of each set, and the fully labelled pictures of the first set that are held out."""
    train: list[tuple[CocoSet, list[Picture]]] = []
    measure: list[Picture] = []
    for index, source in enumerate(recipe.train):
        coco = read_coco(source)
        share = recipe.held_out if index == 0 else 0.0
        longest, side = recipe.augmentation.cache_side, recipe.network.input_size
        kept = [r for r in coco.images if not held_out(r, share) and any(not p.crowd for p in r.people)]
        pictures = [load_picture(r, longest, side) for r in kept]
        if not source.all_labelled:
            pictures = [replace(p, complete=False) for p in pictures]
        train.append((coco, pictures))
        measure += [load_picture(r, longest, side) for r in coco.images if held_out(r, share) and r.complete]
    return train, measure


def letterbox(picture: Picture, side: int) -> tuple[Image, float]:
    """The picture as the service sends it: top left on grey, longest side ``side``; and its scale."""
    scale = side / max(picture.image.shape[:2])
    size = (max(1, round(picture.image.shape[1] * scale)), max(1, round(picture.image.shape[0] * scale)))
    canvas = np.full((side, side, 3), GREY, np.uint8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[: size[1], : size[0]] = cv2.resize(picture.image, size, interpolation=method)
    return canvas, scale


@torch.no_grad()
def measure_held_out(
    recipe: DetectorRecipe, ema: Ema, pictures: Sequence[Picture], device: torch.device
) -> dict[str, float]:
    """Person-box AP of the averaged weights on letterboxed pictures, by pycocotools."""
    network = FasterRcnn(recipe.network).to(device, memory_format=torch.channels_last)
    network.load_state_dict(ema.state)
    network.eval()
    side = recipe.network.input_size
    found = []
    for picture in pictures:
        image, scale = letterbox(picture, side)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            boxes, scores = network.detect(torch.from_numpy(image)[None].to(device))
        keep = nms(boxes[0], scores[0], 0.6)
        found.append((boxes[0][keep].cpu().numpy() / scale, scores[0][keep].cpu().numpy()))
    return box_ap(pictures, found)


def box_ap(pictures: Sequence[Picture], found: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """AP, AP50 and AR of boxes (x1 y1 x2 y2) in the pictures' own pixels, as pycocotools counts them."""
    annotations, results = [], []
    for number, (picture, (boxes, scores)) in enumerate(zip(pictures, found, strict=True), 1):
        for crowd, group in ((0, picture.people), (1, picture.crowds)):
            for x1, y1, x2, y2 in group.tolist():
                size = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": size}
                annotations.append({**entry, "area": size[2] * size[3], "iscrowd": crowd})
        for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            results.append({"image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n} for n in range(1, len(pictures) + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1]), "AR": float(evaluation.stats[8])}


def _listed(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
