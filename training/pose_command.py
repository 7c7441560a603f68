"""Commands of stage `pose`: ``pose`` and ``profile``; mistakes are told in a sentence, not in a stack of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Option("--recipe", exists=True, dir_okay=False, help="YAML recipe")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="field=value, overrides the recipe; repeatable")]


@contextmanager
def told(command: str) -> Iterator[None]:
    """Errors of data, recipes, runs and weights become one line and exit status 1; others keep their traceback."""
    from training.datasets.coco import DatasetError
    from training.initialisation import InitialisationError
    from training.pretrained.weights import PretrainedError
    from training.processes import ProcessError
    from training.recipe import RecipeError
    from training.run import RunError
    from training.trainer import TrainingError

    try:
        yield
    except (
        RecipeError, DatasetError, RunError, InitialisationError, PretrainedError, ProcessError, TrainingError,
    ) as error:  # fmt: skip
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(1) from None


def starting_from(field: str, value: Path | str | None) -> list[str]:
    """``--init`` as the override that it is short for."""
    return [] if value is None else [f"{field}={json.dumps(str(value))}"]


def pose(
    recipe: Recipe,
    output: Annotated[Path, typer.Option("--output", help="folder of the run")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --output")] = False,
    init: Annotated[
        Path | None, typer.Option("--init", help="model.pt to start from; short for --set init=...")
    ] = None,
) -> None:
    """Train a pose network."""
    with told("pose"):
        from training.pose import train_pose

        train_pose(recipe, output, [*(overrides or []), *starting_from("init", init)], resume)


def profile(
    recipe: Recipe,
    steps: Annotated[int, typer.Option(min=1, help="steps that are measured")] = 20,
    overrides: Overrides = None,
) -> None:
    """Measure where the time of a pose network's training goes; writes nothing."""
    with told("profile"):
        from rich.console import Console

        from training.profiling import print_profile, profile_training

        print_profile(profile_training(recipe, overrides or [], steps), Console())
