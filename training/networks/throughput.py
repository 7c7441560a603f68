"""``python -m training.networks.throughput``: parameters, MACs and training speed of slim hourglasses."""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from service.skeletons import UNION19
from training.networks.hourglass import StackedHourglass

# stacks, width, growth, dense: what docs/experiments.md compares.
CANDIDATES = (
    (2, 64, 0, True),
    (2, 48, 24, True),
    (1, 64, 32, True),
    (2, 96, 0, False),
    (2, 48, 48, True),
    (2, 32, 32, True),
    (2, 32, 24, True),
    (1, 48, 48, True),
    (2, 24, 32, True),
)
_BATCH, _HEIGHT, _WIDTH = 32, 256, 192


def multiply_adds(network: StackedHourglass) -> float:
    """Multiply-adds of one crop, counted by torch (two floating-point operations each)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, _HEIGHT, _WIDTH))
    return counter.get_total_flops() / 2


def crops_per_second(network: StackedHourglass, steps: int) -> float:
    """Best speed of a training step (forward, backward, AdamW) in bfloat16, channels-last."""
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    images = torch.randn(_BATCH, 3, _HEIGHT, _WIDTH).to(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(steps):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(images)
        loss = torch.stack([m.float().square().mean() for m in maps]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        best = min(best, time.perf_counter() - begin)
    return _BATCH / best


def main(
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    steps: Annotated[int, typer.Option(help="steps timed for each network; the best counts")] = 4,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    table = Table("stacks", "width", "growth", "block", "parameters", "GMACs", "crops/s")
    for stacks, width, growth, dense in CANDIDATES:
        network = StackedHourglass(
            len(UNION19), ("large", "medium", "small"), stacks=stacks, width=width, growth=growth, dense=dense
        )
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        table.add_row(
            str(stacks), str(width), str(growth), "dense" if dense else "bottleneck",
            f"{parameters:.1f} M", f"{multiply_adds(network.eval()) / 1e9:.2f}",
            f"{crops_per_second(network.train(), steps):.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
