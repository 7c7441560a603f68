"""What a measurement showed, line by line beside its limits: a table for people, JSON for machines, an exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table


class Verdict:
    """Lines with limits; a line whose limit is not kept makes the command fail."""

    def __init__(self, title: str) -> None:
        self._table = Table("", "measured", "limit", title=title)
        self._broken: list[str] = []

    def line(self, name: str, measured: object, limit: str = "", *, kept: bool = True) -> None:
        """Add a line; ``kept`` is whether what was measured is within the limit."""
        text = str(measured)
        self._table.add_row(name, text if kept else f"[bold red]{text}[/bold red]", limit)
        if not kept:
            self._broken.append(f"{name}: {text} (limit: {limit})")

    @property
    def broken(self) -> list[str]:
        """Every limit that was not kept, in words."""
        return list(self._broken)

    def end(self, summary: Mapping[str, Any], examples: Sequence[str] = (), out: Path | None = None) -> None:
        """Print all, the summary as JSON on the last line and into ``out``. Raises typer.Exit(1) for a broken limit."""
        console = Console(width=None if Console().is_terminal else 120)
        console.print(self._table)
        for example in examples[:5]:
            console.print(f"[red]wrong[/red] {example}"[:500], highlight=False)
        told = {**summary, "kept": not self._broken, "broken": self._broken}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(told, indent=1) + "\n")
        print(json.dumps(told), flush=True)
        if self._broken:
            raise typer.Exit(1)


def percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    """A percentile in milliseconds; None of nothing."""
    return round(float(np.percentile(np.asarray(seconds), percent)) * 1000, 2) if len(seconds) else None


def shown_ms(value: float | None) -> str:
    """``12.3 ms``."""
    return "none" if value is None else f"{value:.1f} ms"
