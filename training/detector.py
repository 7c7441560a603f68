"""Training of the person detector: ``python -m training detector --recipe FILE --output DIR``."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from training.box_precision import box_precision, detect_people
from training.datasets.coco import CocoSet, read_coco
from training.datasets.detection import (
    DetectionAugmentation,
    DetectionDataset,
    Picture,
    PictureFile,
    collate,
    held_out,
    load_picture,
)
from training.networks.detection_loss import DetectorLoss, Target, detector_loss
from training.networks.faster_rcnn import DetectorNetwork, FasterRcnn
from training.recipe import DataSource, Strict, read_recipe
from training.run import Ema, Run, seed_everything
from training.schedule import cosine_rate


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


def train_detector(recipe_path: Path, output: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train by a recipe; returns the path of ``model.pt``.

    Raises:
        RecipeError, RunError, DatasetError: what was given cannot be used.
    """
    recipe = read_recipe(recipe_path, DetectorRecipe, overrides)
    seed_everything(recipe.seed)
    device = pick_device(recipe.device)
    run = Run(output, recipe, resume=resume)
    network = FasterRcnn(recipe.network).to(device).to(memory_format=torch.channels_last)
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
        # The loader draws a seed when it starts: from here, or a resumed run would sample other proposals.
        generator=torch.Generator(),
    )
    with _progress() as progress:
        task = progress.add_task("detector", total=recipe.steps, completed=start, info="")
        began, mean_loss = time.monotonic(), 0.0
        for step, (images, targets) in enumerate(loader, start):
            rate = cosine_rate(step, peak=recipe.learning_rate, warmup=recipe.warmup_steps, steps=recipe.steps)
            values = train_step(network, optimizer, images, targets, rate, recipe, device)
            ema.update(network, step)
            done = step + 1
            mean_loss += 0.02 * (values["loss"] - mean_loss) if mean_loss else values["loss"]
            if done % 20 == 0 or done == recipe.steps:
                speed = (done - start) * recipe.batch_size / (time.monotonic() - began)
                run.scalars(done, {**values, "images_per_second": speed})
                progress.update(task, completed=done, info=f"loss {mean_loss:.3f}  {speed:.1f} img/s")
            if measure and done % recipe.evaluate_every == 0 and done < recipe.steps:
                metrics = measure_average(network, ema, measure, recipe, device)
                run.scalars(done, metrics)
                progress.console.print(f"step {done}: loss {mean_loss:.3f} " + _listed(metrics))
            if done % recipe.save_every == 0 or done == recipe.steps:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state}
                run.save({**state, "step": done})
    metrics = measure_average(network, ema, measure, recipe, device) if measure else {}
    run.scalars(recipe.steps, metrics)
    print(f"step {recipe.steps} of {recipe.steps}: {_listed(metrics) or 'nothing held out to measure on'}")
    data = {source.name: len(pictures) for source, pictures in train}
    facts: dict[str, Any] = {"steps": recipe.steps, "data": data, "held_out": {"pictures": len(measure), **metrics}}
    path = run.finish("detector", {k: v.cpu() for k, v in ema.state.items()}, facts)
    run.close()
    return path


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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


def measure_average(
    network: FasterRcnn, ema: Ema, pictures: Sequence[Picture], recipe: DetectorRecipe, device: torch.device
) -> dict[str, float]:
    """Person-box AP of the averaged weights."""
    averaged = copy.deepcopy(network)
    averaged.load_state_dict(ema.state)
    bf16 = recipe.precision == "bf16"
    return box_precision(pictures, detect_people(averaged, pictures, recipe.network.input_size, device, bf16=bf16))


def load_sets(recipe: DetectorRecipe) -> tuple[list[tuple[CocoSet, list[PictureFile]]], list[Picture]]:
    """Training pictures of each set, and the fully labelled pictures of the first set that are held out."""
    train: list[tuple[CocoSet, list[PictureFile]]] = []
    measure: list[Picture] = []
    for index, source in enumerate(recipe.train):
        coco = read_coco(source)
        share = recipe.held_out if index == 0 else 0.0
        longest, side = recipe.augmentation.cache_side, recipe.network.input_size
        kept = [r for r in coco.images if not held_out(r, share) and any(not p.crowd for p in r.people)]
        files = [PictureFile(r, longest, side, all_labelled=source.all_labelled) for r in kept]
        if recipe.workers:
            # Decoded before the workers start, so that they share the memory.
            for file in files:
                file()
        train.append((coco, files))
        measure += [load_picture(r, longest, side) for r in coco.images if held_out(r, share) and r.complete]
    return train, measure


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
