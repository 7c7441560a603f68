"""Training in several processes: who has which part of a batch, and batch statistics over all of it.

The global batch is the recipe's, however many processes share it; each takes a like part. Gradients are averaged over
processes by DDP, losses divide by what all processes hold, and batch normalisation sees the whole batch: one step is
that of one process (up to rounding).
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class ProcessError(ValueError):
    """A number of processes that cannot share the batch."""


def make_fabric(devices: int, precision: Precision) -> Fabric:
    """The processes that take part: torchrun's where it started us, else ``devices`` of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    nodes = int(os.environ.get("WORLD_SIZE", here)) // here
    strategy = "ddp" if here * nodes > 1 else "auto"
    return Fabric(accelerator="auto", devices=here, num_nodes=nodes, strategy=strategy, precision=precision)


def part_of_batch(batch: int, fabric: Fabric) -> slice:
    """This process's places in the global batch. Raises ProcessError when it cannot be shared alike."""
    if batch % fabric.world_size:
        raise ProcessError(f"a batch of {batch} cannot be shared by {fabric.world_size} processes")
    share = batch // fabric.world_size
    return slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)


class _Sum(torch.autograd.Function):
    """Sum over all processes; every process's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all processes' samples with any back end; torch's own runs on CUDA only.

    Every process must hold as many samples.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        if not self.training:
            return super().forward(x)
        world = distributed.get_world_size()
        values = x.float()
        count = values.numel() // values.shape[1] * world
        mean = _sum(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None and self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let all batch normalisation of a network use the statistics of all processes; the state dict's names stay."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            # The same parameters and buffers, another forward.
            module.__class__ = GlobalBatchNorm
    return network
