"""Training of the person detector: ``python -m training detector --recipe FILE --output DIR``."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.box_precision import box_precision, detect_people
from training.datasets.detection import DetectionAugmentation, DetectionDataset, collate
from training.datasets.objects import BoxSet, read_boxes
from training.datasets.pictures import Picture, PictureFile, held_out, load_picture
from training.networks.detection_loss import DetectorLoss, Target, detector_loss
from training.networks.detector_base import Detector
from training.networks.detectors import AnyDetector
from training.networks.faster_rcnn import DetectorNetwork, FasterRcnn
from training.networks.one_stage import OneStage
from training.networks.torchvision_detectors import TorchvisionDetector
from training.recipe import DataSource, RecipeError, Strict, read_recipe
from training.run import Ema, Run, seed_everything
from training.schedule import cosine_rate


class DetectionSource(DataSource):
    """One data set for the detector."""

    all_labelled: bool = Field(True, description="false: pictures may show people without a box, so no background")

    @model_validator(mode="after")
    def _check(self) -> DetectionSource:
        for name in ("share", "weight", "select", "keep", "common_with", "only_joints"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says how crops are drawn; a detector's pictures know repeat alone")
        return self


class DetectorRecipe(Strict):
    """All that a detector's training depends on."""

    seed: int = 0
    train: tuple[DetectionSource, ...] = Field((), description="sets to train on; none only with imported weights")
    held_out: float = Field(0.06, ge=0, lt=1, description="share of the first set kept for measuring while training")
    network: AnyDetector = DetectorNetwork()
    loss: DetectorLoss = Field(DetectorLoss(), description="of faster_rcnn; the others have theirs in network")
    augmentation: DetectionAugmentation = DetectionAugmentation()
    batch_size: int = Field(16, ge=1)
    steps: int = Field(ge=0, description="0: weights that were imported, not trained here")
    warmup_steps: int = Field(200, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_gradient: float = Field(10.0, gt=0, description="largest norm of a step's gradient")
    ema_decay: float = Field(0.998, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    device: str = Field("auto", description="auto: CUDA where there is one")
    workers: int = Field(0, ge=0, description="processes that prepare samples; 0: the training process itself")
    in_memory: bool = Field(True, description="keep decoded pictures; false where they do not fit (COCO: 100 GB)")
    save_every: int = Field(250, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(500, ge=1, description="steps between measurements on the held-out pictures")
    box_threshold: float = Field(0.3, ge=0, le=1, description="lowest score of a box that is served by default")

    @model_validator(mode="after")
    def _check(self) -> DetectorRecipe:
        if self.loss != DetectorLoss() and not isinstance(self.network, DetectorNetwork):
            raise ValueError(f"loss is for the network faster_rcnn; {self.network.name} has its thresholds in network")
        if self.steps and not self.train:
            raise ValueError("train: no data set to train on")
        return self


def train_detector(recipe_path: Path, output: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train by a recipe; returns the path of ``model.pt``.

    Raises:
        RecipeError, RunError, DatasetError: what was given cannot be used.
    """
    recipe = read_recipe(recipe_path, DetectorRecipe, overrides)
    if not recipe.steps:
        raise RecipeError(f"{recipe_path}: steps: 0 trains nothing")
    seed_everything(recipe.seed)
    device = pick_device(recipe.device)
    run = Run(output, recipe, resume=resume)
    network = recipe.network.build().to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, recipe)
    start = 0
    state = run.load() if resume else None
    if state is None:
        recipe.network.initialise(network)
        ema = Ema(network, recipe.ema_decay)
    else:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        ema = Ema(network, recipe.ema_decay)
        ema.state = {name: value.to(device) for name, value in state["ema"].items()}
        start = int(state["step"])
    train, measure = load_sets(recipe)
    dataset = DetectionDataset(
        train,
        recipe.augmentation,
        recipe.seed,
        recipe.steps * recipe.batch_size,
        batch=recipe.batch_size,
        donors=[file for _, files in train for file in files if file.outlined],
    )
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


def make_optimizer(network: nn.Module, recipe: DetectorRecipe) -> torch.optim.AdamW:
    """AdamW for what learns; biases and batch-norm are not decayed."""
    learning = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim > 1]
    free = [p for p in learning if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def detection_loss(
    network: Detector, images: Tensor, targets: list[Target], recipe: DetectorRecipe
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of a batch, and its parts: Faster R-CNN's rules stand in the recipe, the others' in their configs."""
    if isinstance(network, (OneStage, TorchvisionDetector)):
        return network.losses(images, targets)
    assert isinstance(network, FasterRcnn)
    return detector_loss(network, images, targets, recipe.loss)


def train_step(
    network: Detector,
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
    targets = [target.to(device) for target in targets]
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        total, parts = detection_loss(network, images, targets, recipe)
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
    network: Detector, ema: Ema, pictures: Sequence[Picture], recipe: DetectorRecipe, device: torch.device
) -> dict[str, float]:
    """Person-box AP of the averaged weights."""
    averaged = copy.deepcopy(network)
    averaged.load_state_dict(ema.state)
    bf16 = recipe.precision == "bf16"
    return box_precision(pictures, detect_people(averaged, pictures, recipe.network.input_size, device, bf16=bf16))


def load_sets(recipe: DetectorRecipe) -> tuple[list[tuple[BoxSet, list[PictureFile]]], list[Picture]]:
    """Training pictures of each set, and the fully labelled pictures of the first set that are held out."""
    train: list[tuple[BoxSet, list[PictureFile]]] = []
    measure: list[Picture] = []
    for index, source in enumerate(recipe.train):
        data = read_boxes(source, every_category=recipe.network.every_category)
        share = recipe.held_out if index == 0 else 0.0
        longest, side = recipe.augmentation.cache_side, recipe.network.input_size
        kept = [r for r in data.images if not held_out(r, share) and len(r.boxes)]
        files = [PictureFile(r, longest, side, all_labelled=source.all_labelled, keep=recipe.in_memory) for r in kept]
        if recipe.workers and recipe.in_memory:
            # Decoded before the workers start, so that they share the memory.
            for file in files:
                file()
        train.append((data, files))
        measure += [load_picture(r, longest, side) for r in data.images if held_out(r, share) and r.complete]
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
