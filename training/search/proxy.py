"""The small task that stands for training a network in full: a tiny hourglass, tiny crops, few steps, held-out OKS.

BlockQNN trains each block's network for 12 epochs without the end of the schedule (early stop) and corrects what that
hides by the network's cost and the block's density; both corrections are here. What this task cannot say is how a
block does at full width and after a full schedule: a block found here has to be trained there to know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode

from service.crops import box_crop_matrices, crop_people, transform_points
from service.skeletons import Skeleton
from training.batches import PoseBatch
from training.datasets.coco import CocoSet, read_rgb
from training.datasets.union import PoseSample, pose_samples
from training.hard_samples import stage_oks
from training.losses import pose_loss
from training.networks.base import PoseNet, normalise
from training.networks.blocks import RESIDUAL, BlockCode
from training.networks.hourglass import HourglassConfig
from training.recipe import Strict
from training.supervision import Supervision
from training.targets import Radius

# Spatial cross-entropy: squared error would sit on its plateau for all of so short a training.
_RADIUS = Radius(name="proxy", kind="softmax", sigma=1.0)


class Proxy(Strict):
    """Sizes of the small task."""

    size: int = Field(64, ge=32, description="side of the square crops, pixels")
    width: int = Field(16, ge=8, description="channels of the one-stack hourglass")
    depth: int = Field(3, ge=1, le=4, description="its halvings")
    people: int = Field(1200, ge=8, description="people to train on at most, drawn by seed")
    held: int = Field(400, ge=4, description="people to measure on at most")
    holdout: float = Field(0.2, gt=0, lt=1, description="part of the pictures that is measured on")
    min_joints: int = Field(8, ge=1)
    steps: int = Field(100, ge=1)
    batch: int = Field(32, ge=2)
    learning_rate: float = Field(8e-3, gt=0)
    seed: int = 0


class Price(Strict):
    """What cost takes from the reward: ``macs * ln(MACs) + density * ln(density)``, less that of the residual block."""

    macs: float = Field(0.02, ge=0)
    density: float = Field(0.01, ge=0)


@dataclass(frozen=True)
class Outcome:
    """What one block came to. ``macs`` of one crop, ``oks`` in 0..1, ``seconds`` of processor time."""

    oks: float
    reward: float
    macs: float
    parameters: int
    seconds: float


def small_crops(samples: Sequence[PoseSample], side: int) -> PoseBatch:
    """All people as square crops in one batch, without augmentation; each picture is decoded once."""
    size = (side, side)
    crops, points, labelled, areas = [], [], [], []
    for path, group in groupby(samples, key=lambda sample: sample.path):
        people = list(group)
        matrices = box_crop_matrices([person.box for person in people], size)
        crops.append(crop_people(read_rgb(path), matrices, size))
        for person, matrix in zip(people, matrices, strict=True):
            placed = transform_points(matrix, person.keypoints[:, :2])
            inside = ((placed > -0.5) & (placed < side - 0.5)).all(1)
            points.append(placed)
            labelled.append((person.keypoints[:, 2] > 0) & inside)
            areas.append(max(person.area, 1.0) * abs(np.linalg.det(matrix[:, :2])))
    known = torch.from_numpy(np.stack(labelled).astype(np.float32))
    return PoseBatch(
        crops=torch.from_numpy(np.concatenate(crops)),
        points=torch.from_numpy(np.stack(points).astype(np.float32)),
        labelled=known,
        present=known.clone(),
        areas=torch.tensor(areas, dtype=torch.float32),
        indices=torch.arange(len(known)),
    )


class ProxyTask:
    """People in memory, and what a block is worth on them."""

    def __init__(self, sets: Sequence[CocoSet], skeleton: Skeleton, proxy: Proxy, price: Price) -> None:
        """Cuts all crops. Raises DatasetError, or ValueError when nobody is left to train or measure on."""
        self.skeleton, self.proxy, self.price = skeleton, proxy, price
        train, _, held = pose_samples(sets, skeleton, min_joints=proxy.min_joints, holdout=proxy.holdout)
        if not held:
            raise ValueError(f"proxy.holdout {proxy.holdout} leaves nobody to measure on, of {len(train)} people")
        self.train = small_crops(_some(train, proxy.people, proxy.seed), proxy.size)
        self.held = small_crops(_some(held, proxy.held, proxy.seed), proxy.size)
        self._standard = self.cost(RESIDUAL)

    def network(self, code: BlockCode) -> PoseNet:
        """The tiny hourglass of a block."""
        config = HourglassConfig(stacks=1, width=self.proxy.width, depth=self.proxy.depth, dense=True, block=str(code))
        return config.build(len(self.skeleton), [_RADIUS.name])

    def cost(self, code: BlockCode) -> float:
        """Multiply-adds of one crop."""
        side = self.proxy.size
        with torch.device("meta"):
            network = self.network(code).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, 3, side, side))
        return counter.get_total_flops() / 2

    def penalty(self, code: BlockCode, macs: float) -> float:
        """What the block's cost takes from its OKS; 0 for the residual block, negative for cheaper ones."""
        density = math.log(code.density / RESIDUAL.density)
        return self.price.macs * math.log(macs / self._standard) + self.price.density * density

    def run(self, code: BlockCode, seed: int | None = None) -> Outcome:
        """Train and measure. The same code and seed give the same outcome on the same machine and thread count."""
        begin = time.process_time()
        seed = self.proxy.seed if seed is None else seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(code)
            trained = self._train(network, seed)
        oks = self._measure(network) if trained else 0.0
        macs = self.cost(code)
        parameters = sum(p.numel() for p in network.parameters())
        return Outcome(oks, oks - self.penalty(code, macs), macs, parameters, time.process_time() - begin)

    def _train(self, network: PoseNet, seed: int) -> bool:
        """False when the loss stops being a number: such a block is worth nothing."""
        proxy = self.proxy
        optimizer = torch.optim.AdamW(network.parameters(), proxy.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, proxy.learning_rate, total_steps=proxy.steps + 1, pct_start=0.15
        )
        rng = np.random.default_rng((seed, 0))
        network.train()
        for _ in range(proxy.steps):
            chosen = torch.from_numpy(rng.choice(len(self.train), min(proxy.batch, len(self.train)), replace=False))
            batch = self._mirrored(_pick(self.train, chosen), torch.from_numpy(rng.random(len(chosen)) < 0.5))
            maps = network(normalise(batch.crops))
            loss, _ = pose_loss(maps, network.units, batch, [_RADIUS], Supervision(), self.skeleton, network.stride)
            if not torch.isfinite(loss):
                return False
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
        return True

    def _mirrored(self, batch: PoseBatch, chosen: torch.Tensor) -> PoseBatch:
        """The chosen crops mirrored: x becomes W - 1 - x, left and right change names."""
        order = torch.tensor(self.skeleton.flip_permutation)
        points = batch.points[:, order] * torch.tensor([-1.0, 1.0]) + torch.tensor([self.proxy.size - 1.0, 0.0])
        known = torch.where(chosen[:, None], batch.labelled[:, order], batch.labelled)
        return PoseBatch(
            crops=torch.where(chosen[:, None, None, None], batch.crops.flip(2), batch.crops),
            points=torch.where(chosen[:, None, None], points, batch.points),
            labelled=known,
            present=known,
            areas=batch.areas,
            indices=batch.indices,
        )

    @torch.no_grad()
    def _measure(self, network: PoseNet) -> float:
        network.eval()
        found = []
        for start in range(0, len(self.held), 64):
            batch = _pick(self.held, torch.arange(start, min(start + 64, len(self.held))))
            raw = network(normalise(batch.crops))[-1]
            found.append(stage_oks(raw, batch, [_RADIUS], self.skeleton.sigmas, network.stride))
        return float(torch.cat(found).nanmean())


def _some(samples: Sequence[PoseSample], count: int, seed: int) -> list[PoseSample]:
    """At most ``count`` of the samples, drawn evenly, people of one picture still side by side."""
    if len(samples) <= count:
        return list(samples)
    chosen = np.random.default_rng((seed, 1)).choice(len(samples), count, replace=False)
    return [samples[i] for i in np.sort(chosen)]


def _pick(batch: PoseBatch, rows: torch.Tensor) -> PoseBatch:
    return PoseBatch(
        batch.crops[rows], batch.points[rows], batch.labelled[rows], batch.present[rows], batch.areas[rows], rows
    )
