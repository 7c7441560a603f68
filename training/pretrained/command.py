"""``python -m training fetch-pretrained`` and ``import-pose``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class _Layout(str, Enum):
    HRNET = "hrnet"
    MSPN = "mspn"
    RSN = "rsn"
    SIMPLE_BASELINE = "simple_baseline"
    VITPOSE = "vitpose"


def fetch_pretrained(
    name: Annotated[str | None, typer.Argument(help="of the list that is printed without a name")] = None,
    output: Annotated[Path, typer.Option("--output", help="folder of the download and its model.pt")] = Path(
        "pretrained"
    ),
    file: Annotated[
        Path | None, typer.Option("--file", exists=True, help="the download, where it was made by hand")
    ] = None,
) -> None:
    """Download published weights and write them as a model.pt to export or to start from."""
    from rich.console import Console

    from training.pose_command import told

    console = Console()
    if name is None:
        _list()
        return
    with told("fetch-pretrained"):
        from training.pretrained.fetch import fetch, find

        entry = find(name)
        console.print(
            f"{entry.name}: {entry.source}, {_size(entry.megabytes)}; published: {entry.figure or 'no figure'}",
            soft_wrap=True,
        )
        console.print(f"licence: {entry.licence}\ndata: {entry.data}")
        path = fetch(name, output / name, file)
        console.print(f"wrote {path}; next: python -m export {path} --repository model_repository", soft_wrap=True)


def import_pose(
    layout: Annotated[_Layout, typer.Option("--from", help="whose names the tensors have")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="file of weights; ViTPose: a model's id or a folder")],
    output: Annotated[Path, typer.Option("--output", help="model.pt to write")],
    width: Annotated[int | None, typer.Option(min=32, help="of the crops they were trained on; default 192")] = None,
    height: Annotated[int | None, typer.Option(min=32, help="of the crops they were trained on; default 256")] = None,
    skeleton: Annotated[
        str | None, typer.Option(help="order of the joints; default: coco17 for 17, mpii16 for 16")
    ] = None,
    padding: Annotated[
        float | None, typer.Option(min=1, max=2, help="of boxes before they are cropped; default: the published code's")
    ] = None,
) -> None:
    """Turn published pose weights into a model.pt to export or to start from; every tensor must fit."""
    from training.pose_command import told

    if (width is None) != (height is None):
        raise typer.BadParameter("give both or neither", param_hint="--width, --height")
    with told("import-pose"):
        from training.pretrained.checkpoint import import_pose as run

        size = (width, height) if width and height else None
        path = run(layout.value, checkpoint, output, size=size, skeleton=skeleton, padding=padding)
        typer.echo(f"wrote {path}")


def _list() -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from training.pretrained.catalogue import PUBLISHED

    table = Table("name", "network", "crop", "size", "as published", "licence", box=SIMPLE)
    for entry in PUBLISHED:
        crop = "" if entry.layout == "detector" else "x".join(map(str, entry.size))
        table.add_row(entry.name, entry.layout, crop, _size(entry.megabytes), entry.figure, entry.licence)
    Console().print(table)


def _size(megabytes: int | None) -> str:
    return "size as its hub says" if megabytes is None else f"about {megabytes} MB"
