"""``python -m training mine-negatives``: a file of crops that look like people to the detector and are not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress


def mine_negatives(
    annotations: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="COCO-format file of training people")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="folder of its pictures")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="COCO-format file to write")],
    repository: Annotated[Path | None, typer.Option(help="model repository; default: the service's")] = None,
    detector: Annotated[str, typer.Option(help="name of the detector in it")] = "person_detector",
    score: Annotated[float | None, typer.Option(min=0, max=1, help="least score; default: as it is served")] = None,
    iou: Annotated[float, typer.Option(min=0, max=1, help="largest IoU with a labelled person")] = 0.3,
    inside: Annotated[
        float, typer.Option(min=0, max=1, help="largest part of the box in a labelled person, or the other way round")
    ] = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, help="look at the first so many pictures only")] = None,
) -> None:
    """Find the detector's false positives in training pictures. A recipe takes the file as one more data set."""
    from service.engine_choice import open_engine
    from service.errors import ServiceError
    from service.settings import Settings
    from training.datasets.coco import DatasetError, read_coco
    from training.negatives import Mined, MiningRule, as_coco, looks_like_measuring
    from training.negatives import mine_negatives as mine
    from training.recipe import DataSource

    screen = Console(stderr=True)
    if looks_like_measuring(annotations):
        screen.print(
            f"[red]{annotations.name} looks like pictures to measure on. Nothing mined from those may be trained on:"
            " figures measured on them would no longer mean anything."
        )
    settings = Settings() if repository is None else Settings(repository=repository)
    rule = MiningRule(score, iou, inside)

    async def run() -> Mined:
        engine = open_engine(settings)
        await engine.start()
        try:
            with Progress(console=screen) as progress:
                total = sum(image.complete for image in data.images)
                task = progress.add_task("pictures", total=total if limit is None else min(total, limit))
                return await mine(engine, detector, data, rule, limit, lambda done: progress.advance(task, done))
        finally:
            await engine.close()

    try:
        data = read_coco(DataSource(annotations=annotations, images=images))
        mined = asyncio.run(run())
        info = {
            "description": f"boxes of {detector} that hold nobody",
            "pictures": len(mined.images),
            "boxes": mined.boxes,
            "rule": {"score": score, "iou": iou, "inside": inside},
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(as_coco(mined, data, info)) + "\n", encoding="utf-8")
    except (DatasetError, ServiceError, OSError) as error:
        typer.echo(f"mine-negatives: {error}", err=True)
        raise typer.Exit(1) from None
    left_out = len(data.images) - sum(image.complete for image in data.images)
    typer.echo(
        f"{len(mined.negatives)} of {mined.boxes} boxes in {len(mined.images)} pictures hold nobody; "
        f"{left_out} pictures with unlabelled people were left out; wrote {output}"
    )
