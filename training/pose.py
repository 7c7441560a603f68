"""Stage `pose`: train a pose network on person crops of one or several data sets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from service.crops import box_crop_matrices
from service.oks import pairwise_oks
from service.skeletons import SKELETONS, Skeleton
from training.augment import NO_AUGMENTATION, Augmentation
from training.datasets.coco import CocoSet, read_coco
from training.datasets.crops import CropDataset, RepeatSampler
from training.datasets.union import PoseSample, pose_samples
from training.decoding import decode, fuse
from training.losses import pose_loss
from training.networks.base import PoseNet, normalise
from training.networks.hourglass import HourglassConfig
from training.networks.registry import AnyNetwork
from training.recipe import DataSource, Strict, read_recipe
from training.run import Ema, Run, seed_everything
from training.schedule import cosine_rate
from training.targets import Radius, activate, heatmap_points

console = Console()


class PoseRecipe(Strict):
    """All that a pose run depends on."""

    data: tuple[DataSource, ...] = Field(min_length=1)
    skeleton: Literal["coco17", "lsp14", "aic14", "crowdpose14", "mpii16", "union19"] = "union19"
    presets: tuple[str, ...] = Field(("coco17",), description="skeletons to export; the first is the default")
    width: int = Field(192, description="of the crop, pixels")
    height: int = Field(256, description="of the crop, pixels")
    network: AnyNetwork = HourglassConfig()
    radii: tuple[Radius, ...] = Field(min_length=1)
    augmentation: Augmentation = Augmentation()
    min_joints: int = Field(3, ge=1)
    holdout: float = Field(0.03, ge=0, lt=0.5, description="part of the training pictures kept aside to watch")
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup: int = Field(300, ge=0)
    clip: float = Field(5.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    threads: int | None = Field(None, ge=1, description="CPU threads; all when not given")
    workers: int = Field(0, ge=0, description="processes that make crops")
    devices: int = Field(1, ge=1)
    save_every: int = Field(500, ge=1)
    watch_every: int = Field(1000, ge=1)
    seed: int = 0
    init: Path | None = Field(None, description="model.pt to start from, matched by name and shape")

    @model_validator(mode="after")
    def _fits(self) -> PoseRecipe:
        multiple = self.network.multiple
        if self.width % multiple or self.height % multiple:
            raise ValueError(
                f"crop sides must be multiples of {multiple} for {self.network.name}, got {self.width}x{self.height}"
            )
        names = [r.name for r in self.radii]
        if len(set(names)) != len(names):
            raise ValueError(f"two radii have one name: {names}")
        for preset in self.presets:
            if preset not in SKELETONS:
                raise ValueError(f"unknown preset {preset!r}; known: {sorted(SKELETONS)}")
            if missing := [j for j in SKELETONS[preset].joints if j not in self.joints.joints]:
                raise ValueError(f"preset {preset} needs joints that {self.skeleton} lacks: {missing}")
        return self

    @property
    def joints(self) -> Skeleton:
        """The skeleton the network is trained on."""
        return SKELETONS[self.skeleton]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the crop."""
        return self.width, self.height


def build_pose_network(recipe: PoseRecipe) -> PoseNet:
    """The network a recipe describes, freshly initialised."""
    return recipe.network.build(len(recipe.joints), [r.name for r in recipe.radii])


def load_pose_checkpoint(path: Path) -> tuple[PoseRecipe, PoseNet]:
    """Recipe and trained network of a ``model.pt``. Raises ValueError when it holds something else."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved.get("kind") != "pose":
        raise ValueError(f"{path} holds a {saved.get('kind')!r}, not a pose network")
    recipe = PoseRecipe.model_validate(saved["recipe"])
    network = build_pose_network(recipe)
    network.load_state_dict(saved["weights"])
    return recipe, network.eval()


def train_pose(recipe_path: Path, output: Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Train; returns the path of ``model.pt``."""
    recipe = read_recipe(recipe_path, PoseRecipe, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    seed_everything(recipe.seed)
    sets = [read_coco(source) for source in recipe.data]
    train, repeats, held = pose_samples(sets, recipe.joints, min_joints=recipe.min_joints, holdout=recipe.holdout)
    console.print(f"{len(train)} people to train on, {len(held)} held out, from {[s.name for s in sets]}")
    fabric = Fabric(accelerator="auto", devices=recipe.devices, precision=recipe.precision)
    fabric.launch()
    network = build_pose_network(recipe)
    if recipe.init and not resume:
        _initialise(network, recipe.init)
    run = Run(output, recipe, resume=resume)
    trainer = _Trainer(recipe, fabric, network, run, resume)
    trainer.fit(train, repeats, held)
    facts = {"data": _data_facts(sets, len(train), len(held)), "metrics": trainer.watched}
    path = run.finish("pose", trainer.ema.state, facts)
    run.close()
    console.print(f"wrote {path}")
    return path


def _data_facts(sets: Sequence[CocoSet], people: int, held: int) -> dict[str, Any]:
    return {"sets": [s.name for s in sets], "people": people, "held_out": held}


def _initialise(network: nn.Module, path: Path) -> None:
    weights = torch.load(path, map_location="cpu", weights_only=True)["weights"]
    own = network.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ValueError(f"{path}: no tensor fits the network")
    network.load_state_dict(fitting, strict=False)
    console.print(f"initialised {len(fitting)} of {len(own)} tensors from {path}")


class _Trainer:
    """State of one run: network, optimiser, average, step."""

    def __init__(self, recipe: PoseRecipe, fabric: Fabric, network: PoseNet, run: Run, resume: bool) -> None:
        self.recipe, self.fabric, self.run = recipe, fabric, run
        self.plain = network.to(memory_format=torch.channels_last)
        self.ema = Ema(self.plain, recipe.ema)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.network, self.optimizer = fabric.setup(self.plain, optimizer)
        self.step = 0
        self.watched: dict[str, float] = {}
        if resume and (state := run.load()):
            self.plain.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.state = state["ema"]
            self.step = state["step"]
            console.print(f"going on from step {self.step}")

    def fit(self, train: Sequence[PoseSample], repeats: Sequence[float], held: Sequence[PoseSample]) -> None:
        """Run the schedule to its end."""
        recipe = self.recipe
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("pose", total=recipe.steps, completed=self.step)
            begin, seen = time.time(), 0
            for batch in self._batches(train, repeats):
                values = self._optimise(batch)
                seen += len(batch[0])
                progress.update(task, completed=self.step, description=f"pose loss {values['loss/all']:.3f}")
                if self.step % 50 == 0:
                    rate = {"crops_per_second": seen / (time.time() - begin)}
                    self.run.scalars(self.step, {**values, **rate})
                    begin, seen = time.time(), 0
                last = self.step == recipe.steps
                if held and (last or self.step % recipe.watch_every == 0):
                    self._watch(held)
                if (last or self.step % recipe.save_every == 0) and self.fabric.is_global_zero:
                    self._save()

    def _batches(self, train: Sequence[PoseSample], repeats: Sequence[float]) -> Iterator[list[Tensor]]:
        recipe = self.recipe
        data = CropDataset(train, recipe.joints, recipe.size, recipe.augmentation, recipe.seed)
        share = self.fabric.world_size
        start = self.step * recipe.batch * share
        count = (recipe.steps - self.step) * recipe.batch * share
        keys = RepeatSampler(repeats, recipe.seed, start).take(count)[self.fabric.global_rank :: share]
        loader = DataLoader(
            data, batch_size=recipe.batch, sampler=keys, num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0, prefetch_factor=4 if recipe.workers else None,
        )  # fmt: skip
        for batch in loader:
            yield [self.fabric.to_device(part) for part in batch]

    def _optimise(self, batch: list[Tensor]) -> dict[str, float]:
        crops, points, labelled = batch
        recipe = self.recipe
        rate = cosine_rate(self.step, peak=recipe.learning_rate, warmup=recipe.warmup, steps=recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        images = normalise(crops).contiguous(memory_format=torch.channels_last)
        maps = self.network(images)
        loss, values = pose_loss(maps, heatmap_points(points, self.plain.stride), labelled, self.recipe.radii)
        if not torch.isfinite(loss):
            raise ValueError(
                f"loss is {float(loss)} at step {self.step}: lower learning_rate ({self.recipe.learning_rate})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.plain, self.step)
        return {**values, "loss/all": float(loss.detach()), "learning_rate": rate}

    def _watch(self, held: Sequence[PoseSample]) -> None:
        """Mean OKS of the averaged weights on people kept aside from training, by data set."""
        network = build_pose_network(self.recipe).to(self.fabric.device).to(memory_format=torch.channels_last)
        network.load_state_dict(self.ema.state)
        self.watched = held_out_oks(network.eval(), self.recipe, held)
        self.run.scalars(self.step, self.watched)
        text = "  ".join(f"{k} {v:.3f}" for k, v in self.watched.items())
        console.print(f"{time.strftime('%H:%M:%S')} step {self.step}: {text}")

    def _save(self) -> None:
        self.run.save(
            {
                "network": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state,
                "step": self.step,
            }
        )


@torch.no_grad()
def predict_crops(network: PoseNet, recipe: PoseRecipe, crops: Tensor) -> Tensor:
    """Fused and decoded joints of uint8 crops [P, H, W, 3]: [P, K, 3] x, y in crop pixels and score."""
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
        raw = network(normalise(crops).contiguous(memory_format=torch.channels_last))[-1]
    heatmaps = [activate(raw[:, i], radius) for i, radius in enumerate(recipe.radii)]
    weights = torch.ones(len(crops), len(heatmaps), device=crops.device)
    return decode(fuse(heatmaps, weights), network.stride)


def held_out_oks(network: PoseNet, recipe: PoseRecipe, held: Sequence[PoseSample]) -> dict[str, float]:
    """Mean OKS over held-out people with their true boxes, for each data set: ``oks/<data set>``."""
    data = CropDataset(held, recipe.joints, recipe.size, NO_AUGMENTATION, recipe.seed)
    device = next(network.parameters()).device
    sums: dict[str, list[float]] = {}
    for start in range(0, len(held), 64):
        items = [data[0, i] for i in range(start, min(start + 64, len(held)))]
        found = predict_crops(network, recipe, torch.stack([i[0] for i in items]).to(device)).cpu().double().numpy()
        for sample, item, joints in zip(held[start : start + 64], items, found, strict=True):
            labelled = item[2].numpy() > 0
            if not labelled.any():
                continue
            # Back from crop pixels to picture pixels: one scale for both axes, so distances just divide.
            scale = crop_scale(sample.box, recipe.size)
            sigmas = [s for s, known in zip(recipe.joints.sigmas, labelled, strict=True) if known]
            answer, truth = joints[labelled, :2] * scale, item[1].double().numpy()[labelled] * scale
            value = pairwise_oks(answer[None], truth[None], max(sample.area, 1.0), sigmas)[0, 0]
            sums.setdefault(f"oks/{sample.dataset}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sorted(sums.items())}


def crop_scale(box: npt.NDArray[np.float64], size: tuple[int, int]) -> float:
    """Picture pixels for each crop pixel of a person's unaugmented crop."""
    return float(1 / np.sqrt(abs(np.linalg.det(box_crop_matrices(box, size)[0][:, :2]))))
