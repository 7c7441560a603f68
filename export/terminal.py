"""What the command lines share: a console, and how a refusal is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


def make_console(width: int) -> Console:
    """A console of ``width`` columns where the output is a file: a log has room for the tables."""
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


@contextmanager
def refusals(console: Console, outcome: str) -> Iterator[None]:
    """Tell an ExportError of the ``with`` block after ``outcome``, in red, and exit with 1."""
    from export.checkpoints import ExportError  # torch takes seconds to import: --help should not

    try:
        yield
    except ExportError as error:
        console.print(f"[red]{outcome}:[/red] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
