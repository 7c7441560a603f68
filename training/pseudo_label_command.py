"""The command ``python -m training pseudo-label``."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from service.options import PoseOptions
    from service.settings import Settings
    from training.pseudo_label import PseudoLabelRule, PseudoLabels


def pseudo_label(
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of pictures without labels.")],
    output: Annotated[Path, typer.Option(help="COCO-format JSON, for a recipe's `annotations`.")],
    repository: Annotated[Path | None, typer.Option(help="Model repository; default: the service's.")] = None,
    model: Annotated[str, typer.Option(help="Pose model; its joints are labelled.")] = "pose",
    joint_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a joint, in both answers.")] = 0.5,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest similarity of a joint's places in picture and mirror image.")
    ] = 0.7,
    box_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a person's box.")] = 0.5,
    min_joints: Annotated[int, typer.Option(min=1, help="Leave out people with fewer joints that pass.")] = 6,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures, the first by name.")] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Pictures worked on at a time.")] = 2,
) -> None:
    """Label pictures with the served models where picture and mirror image agree."""
    from pydantic import ValidationError

    from service.errors import ServiceError
    from service.options import PoseOptions
    from service.settings import Settings
    from training.answers import EvaluationError
    from training.datasets.coco import DatasetError
    from training.pseudo_label import PseudoLabelRule

    try:
        rule = PseudoLabelRule(joint_score=joint_score, agreement=agreement, box_score=box_score, min_joints=min_joints)
        settings = Settings() if repository is None else Settings(repository=repository)
        options = PoseOptions(model=model, box_threshold=box_score, max_people=100)
        labels = asyncio.run(_label(settings, images, options, rule, limit, in_flight))
        output.parent.mkdir(parents=True, exist_ok=True)
        partial_file = output.with_name(output.name + ".partial")
        partial_file.write_text(json.dumps(labels.document))
        os.replace(partial_file, output)
    except (DatasetError, EvaluationError, ServiceError, ValidationError, OSError) as error:
        typer.echo(f"pseudo-label: {error}", err=True)
        raise typer.Exit(1) from None
    for name, reason in sorted(labels.unusable.items()):
        typer.echo(f"pseudo-label: left out {name}: {reason}", err=True)
    typer.echo(
        f"{len(labels.document['images'])} pictures, {labels.labelled_people} of {labels.people} people and "
        f"{labels.labelled_joints} of {labels.joints} joints labelled; wrote {output}"
    )


async def _label(
    settings: Settings, folder: Path, options: PoseOptions, rule: PseudoLabelRule, limit: int | None, in_flight: int
) -> PseudoLabels:
    from training.answers import InProcess, find_model
    from training.pseudo_label import label_pictures, list_pictures

    pictures = list_pictures(folder)[:limit]
    async with InProcess(settings) as service:
        facts = await find_model(service, options.model)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("pseudo-label", total=len(pictures))
            return await label_pictures(
                service, folder, pictures, facts.skeleton, options, rule,
                in_flight=in_flight, advance=partial(progress.advance, task),
            )  # fmt: skip
