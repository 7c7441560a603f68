"""Size and work of every network variant beside what is published about it.

Counting runs on the meta device: no weights are drawn and nothing is computed, so that the largest network costs
no more than its layers' shapes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.networks.detector_base import Detector
from training.networks.detectors import detector_config
from training.networks.published import Published
from training.networks.registry import network_config

HEIGHT, WIDTH = 256, 192


@dataclass(frozen=True)
class Measured:
    """Parameters, multiply-adds, and multiply-adds by the convention ``outputs`` (see :class:`Published`)."""

    parameters: int
    macs: float
    outputs: float


def build(entry: Published, heads: Sequence[str] = ("medium",)) -> nn.Module:
    """The network of an entry, freshly initialised."""
    if entry.kind == "detector":
        return detector_config(entry.network).build()
    return network_config(entry.network).build(entry.joints, heads)


def measure(entry: Published, heads: Sequence[str] = ("medium",), size: tuple[int, int] = (WIDTH, HEIGHT)) -> Measured:
    """Count one entry: pose networks on one crop of ``size`` (width, height), detectors on one letterboxed picture."""
    if entry.kind == "detector":
        network = build(entry).eval()
        assert isinstance(network, Detector)
        # Which boxes go on depends on their values: the one network that has to compute.
        side = network.network.input_size
        picture = torch.zeros(1, side, side, 3, dtype=torch.uint8)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, OutputCounter(network) as outputs:
            network.detect(picture)
    else:
        with torch.device("meta"):
            network = build(entry, heads).eval()
            crop = torch.zeros(1, 3, size[1], size[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter, OutputCounter(network) as outputs:
            network(crop)
    return Measured(sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 2, outputs.total)


class OutputCounter:
    """Counts kernel multiply-adds at each output place of every convolution and linear layer of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.total = 0.0
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        self._handles = [layer.register_forward_hook(self._add) for layer in layers]

    def _add(self, layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
        else:
            assert isinstance(layer, nn.Linear)
            kernel = layer.in_features
        self.total += kernel * output.numel()

    def __enter__(self) -> OutputCounter:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def crops_per_second(network: nn.Module, *, batch: int = 32, steps: int = 4) -> float:
    """Best speed of a training step (forward, backward, AdamW) of 256x192 crops on the CPU, bfloat16, channels-last."""
    network = network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    images = torch.randn(batch, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last)
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
    return batch / best


@dataclass(frozen=True)
class Row:
    """One line of the table; ``speed`` in trained crops/s where it was measured."""

    entry: Published
    measured: Measured
    speed: float | None = None

    def differences(self) -> tuple[float | None, float | None]:
        """Ours over published, less one, for parameters and for multiply-adds."""
        entry, found = self.entry, self.measured
        parameters = found.parameters / 1e6 / entry.parameters - 1 if entry.parameters else None
        work = found.macs / 1e9 if entry.count == "macs" else found.outputs / 2**30
        return parameters, work / entry.gmacs - 1 if entry.gmacs else None

    def cells(self) -> list[str]:
        """Text of the columns, in the order of :func:`columns`."""
        entry, found = self.entry, self.measured
        parameters, macs = self.differences()
        published_macs = f"{_plain(entry.gmacs)}{'*' if entry.gmacs and entry.count == 'outputs' else ''}"
        cells = [
            entry.label,
            f"{found.parameters / 1e6:.2f}", _plain(entry.parameters), _percent(parameters),
            f"{found.macs / 1e9:.2f}", published_macs, _percent(macs),
            "" if entry.ap is None else f"{entry.ap:.1f}", entry.source,
        ]  # fmt: skip
        return [*cells, f"{self.speed:.1f}"] if self.speed is not None else cells


def columns(rows: Sequence[Row]) -> list[str]:
    """Headers of a table of one kind of networks."""
    accuracy = "box AP" if rows and rows[0].entry.kind == "detector" else "AP"
    names = ["network", "M params", "published", "off", "GMACs", "published", "off", accuracy, "source"]
    return [*names, "crops/s"] if any(row.speed is not None for row in rows) else names


def _plain(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2):g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %".replace("-0.0", "+0.0")


def rich_table(rows: Sequence[Row]) -> Table:
    """For the terminal: without the sources, which would squeeze the figures."""
    names = columns(rows)
    shown = [index for index, name in enumerate(names) if name != "source"]
    table = Table()
    for index in shown:
        table.add_column(names[index], justify="right" if index else "left")
    for row in rows:
        cells = row.cells()
        table.add_row(*(cells[index] if index < len(cells) else "" for index in shown))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """For the docs: lines of a Markdown table, each ended."""
    header = columns(rows)
    lines = [header, ["---"] * len(header), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
