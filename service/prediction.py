"""Many picture files through the pipeline, without a server: what ``tritonpose predict`` does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service import coco
from service.drawing import draw_people, encode_picture
from service.engine_choice import open_engine
from service.errors import InvalidImage, TooLarge, UnsupportedMedia
from service.options import PoseOptions
from service.people import PosedPicture
from service.pipeline import Answer, PosePipeline
from service.settings import Settings
from service.steps import Picture

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# Enough to decode one picture while another is inferred; more would only hold more pixels.
_AT_A_TIME = 4


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the pictures in the folders named (sorted, not in folders below)."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        else:
            files.append(path)
    return files


async def predict_files(
    files: Sequence[Path], options: PoseOptions, settings: Settings, draw: Path | None, console: Console
) -> tuple[bytes, int]:
    """Find the people of every file.

    Args:
        files: pictures; ``image_id`` is the place in this list, from 1.
        options: ``format`` is ``coco`` or ``results``.
        settings: repository and limits.
        draw: folder for pictures with the people drawn in; None for none.
        console: gets the progress (for several files) and a line for each picture that cannot be read.

    Returns:
        the JSON document, and how many pictures could not be read.

    Raises:
        ServiceError: the engine or the options are at fault, not a picture.
    """
    engine = open_engine(settings)
    pipeline = PosePipeline(engine, settings)
    run = _Prediction(pipeline, options, draw, console)
    names = [file.name for file in files] if len({file.name for file in files}) == len(files) else list(map(str, files))
    try:
        await engine.start()
        if draw:
            draw.mkdir(parents=True, exist_ok=True)
        columns = (TextColumn("people"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=len(files) < 2) as progress:
            bar = progress.add_task("people", total=len(files))
            places = asyncio.Semaphore(_AT_A_TIME)

            async def one(index: int, file: Path) -> Answer | None:
                async with places:
                    answer = await run.predict(index + 1, file)
                    progress.advance(bar)
                    return answer

            answers = await asyncio.gather(*(one(index, file) for index, file in enumerate(files)))
    finally:
        await engine.close()
        pipeline.close()
    found = [answer for answer in answers if answer is not None]
    return _document(found, names, options, engine.kind), len(answers) - len(found)


class _Prediction:
    """What is the same for every file."""

    def __init__(self, pipeline: PosePipeline, options: PoseOptions, draw: Path | None, console: Console) -> None:
        self._pipeline, self._options, self._draw, self._console = pipeline, options, draw, console

    async def predict(self, image_id: int, file: Path) -> Answer | None:
        """One picture; None when it cannot be read, which is told."""
        try:
            data = await self._pipeline.off_loop(file.read_bytes)
            answer = await self._pipeline.run([Picture(data, image_id)], self._options, keep_pixels=bool(self._draw))
        except (InvalidImage, TooLarge, UnsupportedMedia) as error:
            self._console.print(f"[red]{file}[/red]: {error.detail}")
            return None
        except OSError as error:
            self._console.print(f"[red]{file}[/red]: {error.strerror}")
            return None
        if self._draw:
            await self._pipeline.off_loop(_write_drawn, answer, self._draw / f"{image_id:04d}-{file.stem}.jpg")
        picture = answer.pictures[0]
        slim = PosedPicture(picture.id, picture.width, picture.height, picture.people)  # lets the pixels go
        return Answer([slim], answer.options, answer.pose)


def _write_drawn(answer: Answer, path: Path) -> None:
    drawn = draw_people(answer.pictures[0], answer.pose.skeleton, answer.options.score_threshold or 0.0)
    path.write_bytes(encode_picture(drawn, "image/jpeg"))


def _document(answers: Sequence[Answer], names: Sequence[str], options: PoseOptions, engine: str) -> bytes:
    pictures = [picture for answer in answers for picture in answer.pictures]
    if options.format == "results":
        return coco.encode(coco.results(pictures))
    if not answers:
        return coco.encode({"info": {}, "images": [], "annotations": [], "categories": []})
    options, pose = answers[0].options, answers[0].pose
    info = coco.info(options, pose, engine)
    document = coco.document(pictures, pose.skeleton, options.score_threshold or 0.0, info)
    for image in document["images"]:
        image["file_name"] = names[image["id"] - 1]
    return coco.encode(document)
