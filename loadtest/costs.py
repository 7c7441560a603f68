"""``python -m loadtest.costs``: processor time of the gateway's own steps, each alone, in one process.

What surrounds the networks of one request: header, decoding, letterbox, crops, suppression, scores, JSON. Processor
time of the calling thread, the least of several rounds that take turns, so that the figures hold on a busy machine
too. In the service the same steps cost up to twice as much, because the networks leave nothing of them in the caches.
The last line is one JSON object.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from loadtest.pictures import rendered_pictures
from service import coco
from service.crops import PADDING, box_crop_matrices, crop_people
from service.image_header import read_header
from service.images import decode, decode_reduced
from service.letterbox import letterbox
from service.oks import pairwise_oks
from service.people import People, PosedPicture, keypoints_in_image
from service.reduction import level_to_begin
from service.rescoring import rescore
from service.skeletons import COCO17
from service.suppression import iou_nms, oks_nms

_LIMIT = 10**9
_SIDE, _CROP = 384, (192, 256)
# Boxes over its threshold that a detector answers for three people.
_BOXES_FOR_ONE = 4


def steps(people: int, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """The steps of one rendered picture, by name."""
    posted = rendered_pictures(1, people, size=size)[0]
    truth = posted.scene.people if posted.scene else []
    boxes = np.array([person.box for person in truth], float).reshape(-1, 4)
    rng = np.random.default_rng(0)
    many = np.repeat(boxes, _BOXES_FOR_ONE, axis=0) + rng.normal(0, 4, (len(boxes) * _BOXES_FOR_ONE, 4))
    scores = rng.uniform(0.3, 1, len(many))
    matrices = box_crop_matrices(boxes, _CROP)
    joints = np.concatenate([rng.uniform(0, 190, (len(boxes), 17, 2)), rng.uniform(0, 1, (len(boxes), 17, 1))], -1)
    pixels = decode(posted.data, read_header(posted.data, _LIMIT))

    def open_picture() -> object:
        header = read_header(posted.data, _LIMIT)
        level = level_to_begin(header, _SIDE, _CROP, PADDING)
        return letterbox(decode_reduced(posted.data, header, level), _SIDE)

    def score() -> People:
        placed = keypoints_in_image(joints, matrices)
        found = People(boxes, scores[: len(boxes)], placed, rescore(scores[: len(boxes)], placed[..., 2]))
        return found.select(oks_nms(placed, boxes, found.scores, COCO17.sigmas, 0.5))

    answer = PosedPicture(1, size[0], size[1], score())
    return {
        "header": lambda: read_header(posted.data, _LIMIT),
        "decode": lambda: decode(posted.data, read_header(posted.data, _LIMIT)),
        "letterbox": lambda: letterbox(pixels, _SIDE),
        "decode and letterbox as served": open_picture,
        "suppression": lambda: iou_nms(many, scores, 0.6, 20),
        "crops": lambda: crop_people(pixels, box_crop_matrices(boxes, _CROP), _CROP),
        "OKS alone": lambda: pairwise_oks(joints[..., :2], joints[..., :2], 1000.0, COCO17.sigmas),
        "scores, OKS suppression": score,
        "JSON": lambda: coco.encode(coco.document([answer], COCO17, 0.3, {})),
    }


def least_ms(work: Callable[[], object], seconds: float) -> float:
    """Milliseconds of processor time of one call: the least of calls for that long, at least three."""
    least, calls, end = float("inf"), 0, time.thread_time() + seconds
    while calls < 3 or time.thread_time() < end:
        started = time.thread_time()
        work()
        least = min(least, time.thread_time() - started)
        calls += 1
    return least * 1e3


def main(
    people: Annotated[int, typer.Option(min=1, help="People in the picture.")] = 3,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of the rendered JPEG.")] = (640, 480),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all steps in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.001, help="Processor seconds for each step in a round.")] = 0.05,
) -> None:
    """Measure the steps around the networks."""
    cv2.setNumThreads(1)
    works = steps(people, size)
    measured = {name: min(least_ms(work, seconds) for _ in range(rounds)) for name, work in works.items()}
    table = Table("step", "ms of processor time", title=f"{size[0]}x{size[1]}, {people} people, each step alone")
    for name, ms in measured.items():
        table.add_row(name, f"{ms:.3f}")
    Console().print(table)
    print(json.dumps({name: round(ms, 4) for name, ms in measured.items()}))


if __name__ == "__main__":
    typer.run(main)
