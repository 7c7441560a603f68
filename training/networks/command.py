"""``python -m training networks``: the table of networks, and the training speed of any of them on this machine."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
import yaml
from rich.console import Console

from training.networks.published import PUBLISHED, Published
from training.networks.registry import network_config
from training.networks.table import Row, build, crops_per_second, markdown_table, measure, rich_table


def networks(
    markdown: Annotated[bool, typer.Option("--markdown", help="as docs/networks.md holds it")] = False,
    only: Annotated[str, typer.Option(help="rows whose label holds this text")] = "",
    network: Annotated[
        list[str], typer.Option(help="a recipe's network section in YAML, instead of the published ones; repeatable")
    ] = [],  # noqa: B006
    joints: Annotated[int, typer.Option(min=1, help="K of networks given by --network")] = 17,
    heads: Annotated[int, typer.Option(min=1, help="R, the number of supervision radii")] = 1,
    speed: Annotated[bool, typer.Option("--speed", help="time training steps on the CPU, pose networks only")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for --speed")] = 1,
    batch: Annotated[int, typer.Option(min=2, help="crops in a step of --speed")] = 32,
) -> None:
    """Print parameters and multiply-adds of every network beside the published figures."""
    torch.set_num_threads(threads)
    entries = [_given(text, joints) for text in network] or [e for e in PUBLISHED if only in e.label]
    names = [f"radius{index}" for index in range(heads)]
    rows = []
    for entry in entries:
        timed = speed and entry.kind == "pose"
        rate = crops_per_second(build(entry, names), batch=batch) if timed else None
        rows.append(Row(entry, measure(entry, names), rate))
    tables = [kept for kind in ("pose", "detector") if (kept := [row for row in rows if row.entry.kind == kind])]
    if markdown:
        print("\n".join(markdown_table(kept) for kept in tables), end="")
    else:
        for kept in tables:
            Console().print(rich_table(kept))


def _given(text: str, joints: int) -> Published:
    try:
        section = yaml.safe_load(text)
        network_config(section)
    except (yaml.YAMLError, ValueError) as error:
        raise typer.BadParameter(f"{text}: {error}", param_hint="--network") from error
    return Published(text, section, joints=joints)
