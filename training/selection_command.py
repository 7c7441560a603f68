"""The commands ``select-data`` and ``select-hard``: which people of a data set a recipe trains on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from training.recipe import DataSource

    Crops = npt.NDArray[np.uint8]
    Joints = npt.NDArray[np.float64]

Annotations = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Annotation file.")]
Images = Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of its pictures.")]
Format = Annotated[str, typer.Option("--format", help="coco, aic, mpii, lsp, crowdpose or ochuman.")]


def select_data(
    annotations: Annotations,
    images: Images,
    form: Format = "coco",
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count how many people each rule of data selection (a recipe's `select`) leaves out."""
    import numpy as np

    from training.datasets import read_set
    from training.datasets.coco import DatasetError
    from training.selection import Rule, centre_similarity, is_selected

    try:
        data = read_set(_source(annotations, images, form))
    except (DatasetError, ValueError) as error:
        typer.echo(f"select-data: {error}", err=True)
        raise typer.Exit(1) from None
    people = [person for image in data.images for person in image.people if person.labelled and not person.crowd]
    figures = {}
    for rule in get_args(Rule):
        similarities = [centre_similarity(person, rule) for person in people]
        figures[rule] = {
            "people": len(people),
            "left_out": sum(not is_selected(person, rule) for person in people),
            "lowest": round(min(similarities, default=0.0), 3),
            "median": round(float(np.median(similarities)), 3) if similarities else 0.0,
        }
    if json_line:
        typer.echo(json.dumps(figures))
        return
    table = Table("rule", "people", "left out", "lowest similarity", "median", title=data.name, title_justify="left")
    for rule, row in figures.items():
        share = 100 * row["left_out"] / max(row["people"], 1)
        table.add_row(
            rule, str(row["people"]), f"{row['left_out']} ({share:.1f} %)", str(row["lowest"]), str(row["median"])
        )
    Console().print(table)


def select_hard(
    checkpoint: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="model.pt of a pose network.")],
    annotations: Annotations,
    images: Images,
    output: Annotated[Path, typer.Option(help="JSON list of annotation ids, for a recipe's `keep`.")],
    form: Format = "coco",
    below: Annotated[float, typer.Option(min=0, max=1, help="People with a lower OKS are hard.")] = 0.6,
    common_with: Annotated[
        str | None, typer.Option(help="Judge only joints that this skeleton has too, e.g. coco17.")
    ] = None,
    min_joints: Annotated[int, typer.Option(min=1, help="Leave out people with fewer labelled joints.")] = 3,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda.")] = "cpu",
) -> None:
    """Pick the people whom a trained pose network does not place well yet."""
    import numpy as np
    import torch

    from training.answers import EvaluationError
    from training.datasets import read_set
    from training.datasets.coco import DatasetError
    from training.hard_examples import CropPoser, hard_people, judge_people
    from training.pose import load_pose_checkpoint, predict_crops
    from training.selection import people_choice

    try:
        data = read_set(_source(annotations, images, form, common_with))
        recipe, network = load_pose_checkpoint(checkpoint)
        network.to(device)

        def pose(crops: Crops) -> Joints:
            return np.asarray(predict_crops(network, recipe, torch.from_numpy(crops).to(device)).cpu(), np.float64)

        poser = CropPoser(recipe.joints, recipe.size, pose)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(data.name, total=len(data.images))
            similarities = judge_people(
                poser, data, people_choice(data), min_joints=min_joints, advance=partial(progress.advance, task)
            )
        chosen = hard_people(similarities, below)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(chosen))
    except (DatasetError, EvaluationError, ValueError, OSError) as error:
        typer.echo(f"select-hard: {error}", err=True)
        raise typer.Exit(1) from None
    mean = float(np.mean(list(similarities.values()))) if similarities else 0.0
    typer.echo(
        f"{len(chosen)} of {len(similarities)} people are below an OKS of {below:g} (mean {mean:.3f}); wrote {output}"
    )


def _source(annotations: Path, images: Path, form: str, common_with: str | None = None) -> DataSource:
    from training.recipe import DataSource, RecipeError

    given = {"annotations": annotations, "images": images, "format": form, "common_with": common_with}
    try:
        return DataSource.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise RecipeError(f"--{str(wrong['loc'][0]).replace('_', '-')} {wrong['input']}: {wrong['msg']}") from None
