"""Command lines on whole repositories; what is heavy is imported when a command runs, not for --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from export.terminal import make_console, refusals

_REPOSITORY = Path("model_repository")
_console = make_console(120)


def configure(
    repository: Annotated[Path, typer.Option(help="model repository whose configs are written anew")] = _REPOSITORY,
    into: Annotated[
        Path | None, typer.Option(help="sibling repository to make instead, with copies of the graphs")
    ] = None,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="switch on TensorRT in Triton's ONNX Runtime back end (needs --into)")
    ] = False,
    engine_cache: Annotated[
        str, typer.Option(help="folder on the server for TensorRT's engines")
    ] = "/var/cache/triton/engines",
    workspace: Annotated[int, typer.Option(min=1, help="GPU memory in MiB that a TensorRT layer may use")] = 2048,
    gpu_memory: Annotated[
        int | None, typer.Option(min=1, help="GPU memory in MiB that an instance of a network may take")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="threads of a run on a CPU; 0 for all cores")] = None,
) -> None:
    """Write each model's config.pbtxt anew, with the newest versions in use; the graphs stay as they are."""
    from export.configs import Accelerator
    from export.configure import ConfigureRequest
    from export.configure import configure as run

    request = ConfigureRequest(
        repository=repository,
        into=into,
        accelerator=Accelerator(engine_cache, workspace * 2**20) if tensorrt else None,
        gpu_memory=gpu_memory * 2**20 if gpu_memory else None,
        threads=threads,
    )
    with refusals(_console, "not configured"):
        changed = run(request)
    what = f"changed: {', '.join(changed)}" if changed else "nothing changed"
    _console.print(f"{into or repository}: {what}", soft_wrap=True, highlight=False)


def check_repository(
    repository: Annotated[Path, typer.Option(help="model repository to check")] = _REPOSITORY,
) -> None:
    """Name everything that is wrong with a repository (exit 1): configs, graphs, ensembles, parameters, files."""
    from export.check import check_repository as check
    from export.check import is_ensemble

    checked = check(repository)
    for title, colour, found in (("wrong", "red", checked.findings), ("to know", "yellow", checked.notes)):
        if found:
            table = Table("model", title, box=SIMPLE)
            for one in found:
                table.add_row(one.model or "(repository)", f"[{colour}]{_escaped(one.fault)}")
            _console.print(table)
    ensembles = sum(is_ensemble(config) for config in checked.models.values())
    summary = f"{repository}: {len(checked.models) - ensembles} networks, {ensembles} ensembles"
    if checked.findings:
        _console.print(f"{summary}, [red]{len(checked.findings)} faults", soft_wrap=True)
        raise typer.Exit(1)
    _console.print(f"{summary}, [green]nothing wrong", soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
