"""The command ``python -m training evaluate``: flags to a recipe, a service that answers, and the report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

RECIPE = Path(__file__).parent / "recipes" / "evaluate.yaml"


def evaluate(
    recipe: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            show_default=f"training/recipes/{RECIPE.name}",
            help="YAML recipe; flags override it.",
        ),
    ] = RECIPE,
    annotations: Annotated[
        list[Path] | None, typer.Option(help="COCO-format JSON instead of the recipe's sets; repeatable.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of its pictures; one for each JSON.")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of --annotations: coco, aic, mpii, lsp, crowdpose, ochuman; decides the figures."
        ),
    ] = None,
    all_labelled: Annotated[
        bool,
        typer.Option(
            "--all-labelled/--some-labelled",
            help="Whether the pictures of --annotations show nobody without a label; if they may, found people get "
            "no AP, only PCK.",
        ),
    ] = True,
    repository: Annotated[Path | None, typer.Option(help="Model repository; default: the service's.")] = None,
    url: Annotated[str | None, typer.Option(help="Ask this live service instead of measuring in process.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TRITONPOSE_API_KEY", help="For --url.")] = None,
    boxes: Annotated[str | None, typer.Option(help="detector, or truth to pose the annotated boxes.")] = None,
    model: Annotated[str | None, typer.Option(help="Pose model.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirrored crop.")] = None,
    fusion: Annotated[str | None, typer.Option(help="Exponents of the radius maps, e.g. 1,0,0.")] = None,
    box_threshold: Annotated[float | None, typer.Option(help="Lowest box score that is posed.")] = None,
    max_people: Annotated[int | None, typer.Option(help="Most people in one picture.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many pictures of each set.")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Pictures asked about at a time.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, overrides the recipe; repeatable.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the results list that loadRes takes.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Folder for pictures of the worst cases.")] = None,
    worst: Annotated[int, typer.Option(min=1, help="How many of each set to draw.")] = 20,
    curve: Annotated[
        Path | None, typer.Option("--reliability", help="PNG of how often joints of a score are right.")
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="PNG of the people met worst, as sketches without their photographs.")
    ] = None,
) -> None:
    """Measure what is served: keypoint and box AP, PCK@0.2, the format's own. The last line is one JSON object."""
    from service.client import ClientError
    from service.errors import ServiceError
    from service.settings import Settings
    from training import evaluation_report
    from training.answers import EvaluationError, InProcess, OverHttp
    from training.datasets.coco import DatasetError
    from training.evaluate import EvaluationRecipe, summarize
    from training.evaluate import evaluate as measure
    from training.failure_sheet import draw_failures
    from training.recipe import RecipeError, read_recipe

    if url and repository:
        raise typer.BadParameter("--repository is for measuring in process, --url for a live service: give one")
    flags = {
        "boxes": boxes,
        "limit": limit,
        "in_flight": in_flight,
        "options.model": model,
        "options.flip": flip,
        "options.fusion": fusion,
        "options.box_threshold": box_threshold,
        "options.max_people": max_people,
        "data": _sources(annotations or [], images or [], all_labelled, form),
    }
    # JSON is YAML, which is how overrides are read.
    given = [f"{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]
    screen, progress = Console(), Console(stderr=True)
    try:
        measured = read_recipe(recipe, EvaluationRecipe, [*given, *(overrides or [])])
        settings = Settings() if repository is None else Settings(repository=repository)
        service = OverHttp(url, api_key) if url else InProcess(settings)
        evaluation = asyncio.run(measure(measured, service, progress))
        summary = summarize(evaluation)
    except (RecipeError, DatasetError, EvaluationError, ServiceError, ClientError) as error:
        typer.echo(f"evaluate: {error}", err=True)
        raise typer.Exit(1) from None
    evaluation_report.print_tables(screen, summary)
    written = evaluation_report.save_results(evaluation, save) if save else []
    written += evaluation_report.draw_worst(evaluation, draw, worst) if draw else []
    written += draw_failures(evaluation, failures) if failures else []
    written += evaluation_report.draw_curves(evaluation, curve) if curve else []
    for path in written:
        progress.print(f"wrote {path}")
    # Not rich's print: a table may be wrapped, this line may not.
    typer.echo(json.dumps(summary))


def _sources(
    annotations: Sequence[Path], images: Sequence[Path], all_labelled: bool, form: str | None
) -> list[dict[str, str | bool]] | None:
    if len(annotations) != len(images):
        raise typer.BadParameter(f"{len(annotations)} --annotations and {len(images)} --images: give one for each")
    if not annotations:
        if form is not None:
            raise typer.BadParameter("--format is of --annotations; a recipe's sets name their own")
        return None
    return [
        {"annotations": str(file), "images": str(folder), "all_labelled": all_labelled, "format": form or "coco"}
        for file, folder in zip(annotations, images, strict=True)
    ]
