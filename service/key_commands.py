"""``tritonpose keys``: make API keys. A key is shown once; what is kept is its hash."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.keys import Key, Limits, check_key, key_line, new_key, read_keys

commands = typer.Typer(help="Make API keys.", no_args_is_help=True)
_errors = Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits and . _ -")]
KeysFile = Annotated[Path | None, typer.Option("--file", help="Keys file to append the line to; made if need be.")]
Rate = Annotated[float | None, typer.Option(min=0, help="Requests a second; 0 for no limit.")]
Burst = Annotated[int | None, typer.Option(min=1, help="Requests at once before the rate counts.")]
Concurrency = Annotated[int | None, typer.Option(min=0, help="Requests in flight; 0 for no limit.")]


@commands.command()
def create(
    name: Name, file: KeysFile = None, rate: Rate = None, burst: Burst = None, concurrency: Concurrency = None
) -> None:
    """Make a random key, print it, and print or append its line for the file of TRITONPOSE_API_KEYS_FILE."""
    key = new_key()
    _add(name, key, Limits(rate, burst, concurrency), file)
    typer.echo(key)


@commands.command("hash")
def hash_key(
    name: Name, file: KeysFile = None, rate: Rate = None, burst: Burst = None, concurrency: Concurrency = None
) -> None:
    """The same for a key that exists already, read from standard input (an argument would be in process lists)."""
    key = sys.stdin.readline().strip()
    try:
        check_key(key)
    except ValueError as error:
        _errors.print(f"[red]the key on standard input[/red]: {error}")
        raise typer.Exit(2) from None
    _add(name, key, Limits(rate, burst, concurrency), file)


@commands.command("list")
def list_keys(file: Annotated[Path, typer.Argument(help="Keys file.")]) -> None:
    """Check a keys file and list the names and limits in it."""
    for key in _read(file):
        limits = (f"{limit}={value:g}" for limit, value in vars(key.limits).items() if value is not None)
        typer.echo(" ".join([key.name, *limits]))


def _add(name: str, key: str, limits: Limits, file: Path | None) -> None:
    try:
        line = key_line(name, key, limits)
    except ValueError as error:
        _errors.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None
    if file is None:
        _errors.print(f"line for the keys file:\n{line}", soft_wrap=True)
        return
    if file.exists() and name in {known.name for known in _read(file)}:
        _errors.print(f"[red]{file} has a key of the name {name} already[/red]")
        raise typer.Exit(2)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    ending = "" if not text or text.endswith("\n") else "\n"
    # For its owner alone: hashes are no secret, but a line more is a key more.
    with open(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as opened:
        opened.write(f"{ending}{line}\n")
    _errors.print(f"added to {file}")


def _read(file: Path) -> list[Key]:
    try:
        return read_keys(file)
    except ValueError as error:
        _errors.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None
