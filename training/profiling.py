"""Where a training step's time goes: ``python -m training profile --recipe FILE``.

The loop itself is measured, on the recipe's own data, network and device: each part of a step is timed with the device
waited for, then whole steps without waiting. The network must set the pace: forward, loss and backward should be 90 %.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from training.datasets.reading import read_set
from training.datasets.union import pose_samples
from training.networks.base import PoseNet
from training.pose import build_pose_network, crop_source
from training.pose_recipe import PoseRecipe
from training.processes import make_fabric
from training.recipe import read_recipe
from training.run import seed_everything
from training.trainer import Trainer

# Dense bf16 peaks in TFLOP/s from the makers' data sheets, by a part of the name that torch gives; first match counts.
_PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("A100", 312.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A30", 165.0),
    ("L40S", 362.0),
    ("L4", 121.0),
)
_NETWORK = ("forward", "loss", "backward")
# Steps before the clock starts: kernels are chosen and memory is taken in them.
_WARM_UP = 3


class Stopwatch:
    """Seconds of each part of a step; waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def start(self) -> None:
        """Forget what was measured."""
        self.seconds = {}
        self._last = self._now()

    def lap(self, name: str) -> None:
        """The time since the last call went into ``name``."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        seconds: of each part, over all measured steps, the device waited for after each part.
        steps: how many they are.
        batch: crops of one step.
        crops_per_second: of whole steps, nothing waited for between their parts.
        flops: of one crop, forward and backward (twice the forward's).
        peak: the device's dense bf16 peak in FLOP/s; None when not known.
    """

    seconds: dict[str, float]
    steps: int
    batch: int
    crops_per_second: float
    flops: float
    peak: float | None

    @property
    def network_share(self) -> float:
        """Part of the time that went into forward, loss and backward."""
        return sum(self.seconds.get(name, 0.0) for name in _NETWORK) / sum(self.seconds.values())


def profile_training(recipe_path: Path, overrides: Sequence[str] = (), steps: int = 20) -> Profile:
    """Measure ``steps`` steps of a recipe's training; nothing is written.

    Raises:
        RecipeError, DatasetError: what was given cannot be used.
    """
    recipe = read_recipe(recipe_path, PoseRecipe, [*overrides, f"steps={2 * (_WARM_UP + steps)}"])
    fabric = make_fabric(recipe.devices, recipe.precision)
    fabric.launch()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    seed_everything(recipe.seed)
    people, repeats, _ = pose_samples(
        [read_set(s) for s in recipe.data], recipe.joints, min_joints=recipe.min_joints, holdout=recipe.holdout
    )
    network = build_pose_network(recipe)
    flops = 3 * _forward_flops(network, recipe)
    trainer = Trainer(recipe, fabric, network)
    source = crop_source(recipe, fabric, people)
    watch = Stopwatch(fabric.device)
    # Parts: batches are made between the steps, none ahead, so that making them is seen.
    batches = trainer.batches(source, repeats, ahead=0)
    trainer.lap = watch.lap
    for done, batch in enumerate(batches, 1):
        trainer.optimise(batch)
        if done == _WARM_UP:
            watch.start()
        if done == _WARM_UP + steps:
            break
    batches.close()
    seconds = dict(watch.seconds)
    # Whole steps, as training runs them.
    trainer.lap = lambda _: None
    for done, batch in enumerate(trainer.batches(source, repeats), 1):
        trainer.optimise(batch)
        if done == _WARM_UP:
            watch.start()
    watch.lap("all")
    crops = recipe.batch * steps / watch.seconds["all"]
    return Profile(seconds, steps, recipe.batch, crops, flops, _peak(fabric.device))


def _forward_flops(network: PoseNet, recipe: PoseRecipe) -> float:
    """Of one crop; a multiplication and an addition count as two."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 3, recipe.height, recipe.width))
    return float(counter.get_total_flops())


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in _PEAKS if part in name), None)


def print_profile(profile: Profile, console: Console) -> None:
    """Print the table that ``docs/training.md`` shows."""
    total = sum(profile.seconds.values())
    table = Table("part", "ms a step", "share")
    for name, seconds in profile.seconds.items():
        table.add_row(name, f"{1000 * seconds / profile.steps:.1f}", f"{100 * seconds / total:.1f} %")
    table.add_section()
    table.add_row("whole step", f"{1000 * total / profile.steps:.1f}", "100 %")
    table.add_row("forward, loss, backward", "", f"{100 * profile.network_share:.1f} %")
    console.print(table)
    rate = profile.crops_per_second * profile.flops
    text = f"{profile.crops_per_second:,.1f} crops/s in steps of {profile.batch}; {rate / 1e12:.3f} TFLOP/s"
    if profile.peak:
        text += f", {100 * rate / profile.peak:.1f} % of the device's bf16 peak"
    console.print(text)
