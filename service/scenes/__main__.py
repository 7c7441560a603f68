"""``python -m service.scenes``: write rendered scenes as a COCO data set, or a sheet to look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.scenes.coco import write_coco
from service.scenes.poses import POSES
from service.scenes.scene import Scene, render_scene
from service.skeletons import SKELETONS, UNION19


def _numbers(text: str) -> tuple[int, int]:
    """``3`` or ``1-6``."""
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError as error:
        raise typer.BadParameter(f"expected a number or a range such as 1-6, got {text!r}") from error
    if not 0 <= low <= high:
        raise typer.BadParameter(f"the range {text!r} is empty")
    return low, high


def _size(text: str) -> tuple[int, int]:
    """``640x480``."""
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise typer.BadParameter(f"expected WIDTHxHEIGHT, got {text!r}") from error
    return width, height


def main(
    out: Annotated[Path, typer.Option(help="Folder for images/ and annotations.json.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 100,
    people: Annotated[str, typer.Option(help="People in a picture: a number or a range.")] = "1-6",
    occluders: Annotated[str, typer.Option(help="Things before people: a number or a range.")] = "0-2",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "640x480",
    stature: Annotated[tuple[float, float], typer.Option(help="Lowest and highest stature, of the height.")] = (
        0.3,
        0.95,
    ),
    pose: Annotated[list[str] | None, typer.Option(help=f"Only these poses; of {', '.join(POSES)}.")] = None,
    skeleton: Annotated[str, typer.Option(help="Joints to annotate: coco17, lsp14, union19 ...")] = UNION19.name,
    whole: Annotated[bool, typer.Option(help="Every joint inside the picture.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="Also a contact sheet of the first twelve.")] = None,
    quality: Annotated[int, typer.Option(min=0, max=100, help="JPEG quality; 0 for PNG.")] = 92,
) -> None:
    """Draw pictures of people with known joints and write them as a COCO data set."""
    if skeleton not in SKELETONS:
        raise typer.BadParameter(f"no skeleton {skeleton!r}; there are {', '.join(SKELETONS)}")
    console = Console(stderr=True)
    first: list[Scene] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("drawing scenes", total=count)

        def draw() -> Iterator[Scene]:
            for index in range(count):
                scene = render_scene(
                    (seed, index),
                    size=_size(size),
                    people=_numbers(people),
                    occluders=_numbers(occluders),
                    stature=stature,
                    poses=pose,
                    whole=whole,
                    skeleton=SKELETONS[skeleton],
                )
                if sheet is not None and len(first) < 12:
                    first.append(scene)
                progress.advance(task)
                yield scene

        try:
            path = write_coco(draw(), out, quality=quality)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if sheet is not None:
        rows = [first[i : i + 4] for i in range(0, len(first) - len(first) % 4 or len(first), 4)]
        picture = np.vstack([np.hstack([scene.image for scene in row]) for row in rows])
        cv2.imwrite(str(sheet), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    console.print(f"{count} pictures: {path}")


if __name__ == "__main__":
    typer.run(main)
