"""The loop of stage `pose`: batches in, optimiser steps, averaged weights, checkpoints, a look at held-out people."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

from training.batches import PoseBatch
from training.datasets.crops import CropSource
from training.draws import SampleStream
from training.held_out import HeldOut
from training.losses import pose_loss
from training.networks.base import PoseNet, normalise
from training.optimisers import make_optimiser
from training.pose_recipe import PoseRecipe
from training.processes import part_of_batch, synchronise_batch_norm
from training.run import Ema, Run

_LOG_EVERY = 50
# Batches that a GPU finds ready.
_AHEAD = 2


class TrainingError(ValueError):
    """A run that went wrong; says where and what to change."""


class Trainer:
    """State of one run: network, optimiser, average, step.

    Attributes:
        lap: called with the name of each part of a step when it is done (``data``, ``forward`` ...); a profiler's.
    """

    def __init__(self, recipe: PoseRecipe, fabric: Fabric, network: PoseNet) -> None:
        recipe.supervision.check(network.units, recipe.joints)
        self.recipe, self.fabric = recipe, fabric
        self.part = part_of_batch(recipe.batch, fabric)
        self.plain = network.to(memory_format=torch.channels_last)
        if recipe.sync_batchnorm and fabric.world_size > 1:
            synchronise_batch_norm(self.plain, fabric.device)
        optimiser = make_optimiser(
            self.plain, recipe.optimiser, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.network, self.optimiser = fabric.setup(self.plain, optimiser)
        self.ema = Ema(self.plain, recipe.ema)
        self.step = 0
        self.lap: Callable[[str], None] = lambda _: None

    def state(self) -> dict[str, object]:
        """All that is needed to go on."""
        return {
            "network": self.plain.state_dict(),
            "optimizer": self.optimiser.state_dict(),
            "ema": self.ema.state,
            "step": self.step,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Go on from :meth:`state`."""
        self.plain.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.optimiser.load_state_dict(state["optimizer"])
        for name, value in state["ema"].items():  # type: ignore[attr-defined]
            self.ema.state[name].copy_(value)
        self.step = int(state["step"])  # type: ignore[call-overload]

    def batches(
        self, source: CropSource, repeats: Sequence[float], ahead: int = _AHEAD
    ) -> Generator[PoseBatch, None, None]:
        """This process's part of each step's batch, from the current step to the last.

        ``ahead`` batches are made while a GPU works on others.
        """
        stream = SampleStream(repeats, self.recipe.seed)
        size = self.recipe.batch

        def make(step: int) -> PoseBatch:
            draws = np.arange(step * size, (step + 1) * size)[self.part]
            indices = stream.take(step * size, size)[self.part]
            return source.batch(draws, indices, self.recipe.size_at(step))

        steps = range(self.step, self.recipe.steps)
        if source.device.type == "cpu" or not ahead:
            # The network uses every core already.
            yield from map(make, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(make, step) for step in steps[:ahead]]
            for step in steps:
                if step + ahead in steps:
                    waiting.append(pool.submit(make, step + ahead))
                yield waiting.pop(0).result()

    def optimise(self, batch: PoseBatch) -> dict[str, float]:
        """One step; returns what goes into the curves."""
        recipe = self.recipe
        rate = recipe.learning_rate * recipe.schedule.factor(self.step, recipe.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        images = normalise(batch.crops).contiguous(memory_format=torch.channels_last)
        self.lap("data")
        maps = self.network(images)
        self.lap("forward")
        loss, values = pose_loss(
            maps, self.plain.units, batch, recipe.radii, recipe.supervision, recipe.joints, self.plain.stride
        )
        mean = loss.detach().clone()
        if self.fabric.world_size > 1:
            distributed.all_reduce(mean)
        whole = float(mean) / self.fabric.world_size
        if not math.isfinite(whole):
            raise TrainingError(
                f"loss is {whole} at step {self.step}: lower learning_rate ({recipe.learning_rate}) or set clip"
            )
        self.lap("loss")
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.lap("backward")
        if recipe.clip is not None:
            self.fabric.clip_gradients(self.network, self.optimiser, max_norm=recipe.clip, error_if_nonfinite=False)
        self.lap("clipping")
        self.optimiser.step()
        self.lap("optimiser")
        self.step += 1
        self.ema.update(self.plain, self.step)
        self.lap("average")
        return {**values, "loss/all": whole, "learning_rate": rate}

    def fit(
        self, source: CropSource, repeats: Sequence[float], held: HeldOut | None, run: Run, console: Console
    ) -> dict[str, float]:
        """Run the schedule to its end; returns the last look at the held-out people."""
        recipe, first = self.recipe, self.fabric.is_global_zero
        watched: dict[str, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not first) as progress:
            task = progress.add_task("pose", total=recipe.steps, completed=self.step)
            begin, seen = time.perf_counter(), 0
            for batch in self.batches(source, repeats):
                values = self.optimise(batch)
                seen += recipe.batch
                progress.update(task, completed=self.step, description=f"pose loss {values['loss/all']:.3f}")
                if not first:
                    continue
                if self.step % _LOG_EVERY == 0:
                    run.scalars(self.step, {**values, "crops_per_second": seen / (time.perf_counter() - begin)})
                    begin, seen = time.perf_counter(), 0
                last = self.step == recipe.steps
                if held and (last or self.step % recipe.watch_every == 0):
                    watched = held.oks(self.averaged())
                    run.scalars(self.step, watched)
                    text = "  ".join(f"{k} {v:.3f}" for k, v in watched.items())
                    console.print(f"{time.strftime('%H:%M:%S')} step {self.step}: {text}")
                if last or self.step % recipe.save_every == 0:
                    run.save(self.state())
        return watched

    def averaged(self) -> PoseNet:
        """A copy of the network with the averaged weights, to measure with."""
        network = copy.deepcopy(self.plain)
        network.load_state_dict(self.ema.state)
        return network.eval()
