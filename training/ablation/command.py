"""The command ``python -m training ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RECIPE = Path(__file__).parents[1] / "recipes" / "ablation.yaml"


def ablate(
    output: Annotated[Path, typer.Option(help="Folder of the runs; what is there is not done again.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="YAML of what to compare.")] = RECIPE,
    only: Annotated[list[str] | None, typer.Option(help="Train only these, measure nothing; repeatable.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 2,
    train: Annotated[bool, typer.Option("--train/--no-train", help="no: measure what is trained already.")] = True,
    report: Annotated[bool, typer.Option("--report", help="Only print what is measured already.")] = False,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw it as a PNG.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="field=value, overrides the recipe.")] = None,
) -> None:
    """Train and measure every row of the ablation table, and print it."""
    import signal

    from rich.console import Console

    from service.errors import ServiceError
    from training.ablation import report as tables
    from training.ablation.ablation import Ablation, AblationError, read_ablation
    from training.answers import EvaluationError
    from training.datasets.coco import DatasetError
    from training.recipe import RecipeError

    # A kill must end the trainings too, which it does once it is an exception.
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    try:
        ablation = Ablation(read_ablation(recipe, overrides or []), output)
        if train and not report:
            ablation.train(ablation.jobs(only or []), parallel)
            if only:
                return
        if not report:
            ablation.measure()
    except (RecipeError, AblationError, DatasetError, EvaluationError, ServiceError) as error:
        typer.echo(f"ablate: {error}", err=True)
        raise typer.Exit(1) from None
    if picture:
        from training.ablation import plot

        plot.draw(ablation, picture)
    if markdown:
        typer.echo(tables.markdown(ablation))
    else:
        tables.print_report(ablation, Console())


def _stop() -> None:
    raise typer.Exit(143)
