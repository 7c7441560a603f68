"""What an evaluation prints and writes: tables, results lists, and pictures of the worst cases."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from service.drawing import draw_people, encode_picture
from service.people import People, PosedPicture
from service.skeletons import Skeleton
from training.datasets.coco import ImageRecord, read_rgb
from training.evaluate import Evaluation, Measured
from training.metrics.coco import BOX_FIGURES, KEYPOINT_FIGURES, keypoint_results
from training.metrics.joint_errors import KINDS
from training.metrics.pck import labelled_people, similarity
from training.reliability import draw_reliability, reliability

JsonObject = dict[str, Any]

# Joints of the answer that are drawn: nearly all, since it is the wrong ones that are looked for.
_DRAWN_SCORE = 0.05
_DRAWN_HEIGHT = 480


def print_tables(console: Console, summary: JsonObject) -> None:
    """One table for each kind of figure. ``summary`` as :func:`training.evaluate.summarize` gives it."""
    sets: dict[str, JsonObject] = summary["sets"]
    console.print(
        f"{summary['options']['model']} ({summary['skeleton']}), boxes of the {summary['boxes']}, {summary['service']}"
    )
    for title, key, names in (
        ("Keypoints (COCO OKS)", "keypoints", KEYPOINT_FIGURES),
        ("Person boxes", "boxes", tuple(BOX_FIGURES)),
    ):
        rows = {name: figures for name, figures in sets.items() if figures[key]}
        if rows:
            table = Table("set", *names, title=title, title_justify="left")
            for name, figures in rows.items():
                spread = figures[key]["spread"] or {}
                table.add_row(name, *(_percent(figures[key][figure], spread.get(figure)) for figure in names))
            console.print(table)
    for name, figures in sets.items():
        if figures["pck"]:
            console.print(_pck_table(name, figures["pck"], "PCK"))
        if "pckh" in figures:
            console.print(_pck_table(name, figures["pckh"], "PCKh"))
        if "aic" in figures:
            console.print(_aic_table(name, figures["aic"]))
        if "crowdpose" in figures:
            console.print(_crowd_table(name, figures["crowdpose"]))
    diagnosed = {name: figures["joint_errors"] for name, figures in sets.items() if figures["joint_errors"]}
    if diagnosed:
        table = Table("set", *KINDS, title="Labelled joints of people who were found, percent", title_justify="left")
        for name, shares in diagnosed.items():
            table.add_row(name, *(_percent(shares[kind]) for kind in KINDS))
        console.print(table)
    times = Table("set", "pictures", "people", "answered", "ms/picture", "p50 ms", "p95 ms", title="Pictures",
                  title_justify="left")  # fmt: skip
    for name, figures in sets.items():
        latency = figures["latency_ms"]
        counts = (figures["pictures"], figures["labelled_people"], figures["answered_people"])
        measured = (figures["ms_per_picture"], latency["p50"], latency["p95"])
        times.add_row(name, *map(str, counts), *(f"{value:.1f}" for value in measured))
    console.print(times)
    for name, figures in sets.items():
        if figures["joints_left_out"]:
            console.print(f"{name}: the model has no {', '.join(figures['joints_left_out'])}; left out of all figures")


def save_results(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write what ``loadRes`` takes, joints in the data set's order; joints that the model lacks are 0, 0, 0.

    Args:
        evaluation: whose answers.
        path: the file; with several sets each gets its own, ``results.json`` becomes ``results.coco_val.json``.

    Returns:
        the files.
    """
    written = []
    for measured in evaluation.sets:
        several = len(evaluation.sets) > 1
        target = path.with_suffix(f".{measured.data.name}{path.suffix or '.json'}") if several else path
        entries = keypoint_results(measured.answers, measured.joints)
        for entry in entries:
            joints = np.zeros((len(measured.data.skeleton), 3))
            joints[list(measured.joints.in_truth)] = np.reshape(entry["keypoints"], (-1, 3))
            entry["keypoints"] = joints.ravel().tolist()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(entries))
        written.append(target)
    return written


def draw_worst(evaluation: Evaluation, folder: Path, worst: int) -> list[Path]:
    """Draw the pictures whose labelled people are met worst: the truth on the left, the answer on the right.

    Args:
        evaluation: whose answers.
        folder: gets a sub-folder for each set; files are named by rank, picture and mean OKS.
        worst: pictures of each set.

    Returns:
        the files, worst first.
    """
    written = []
    for measured in evaluation.sets:
        by_picture: dict[int, list[float]] = defaultdict(list)
        for pair in measured.pairs:
            by_picture[pair.picture].append(similarity(pair, measured.joints))
        ranked = sorted(by_picture, key=lambda picture: float(np.mean(by_picture[picture])))
        target = folder / measured.data.name
        target.mkdir(parents=True, exist_ok=True)
        for rank, index in enumerate(ranked[:worst], start=1):
            image = measured.data.images[index]
            name = f"{rank:03d}_{image.path.stem}_oks{np.mean(by_picture[index]):.2f}.jpg"
            (target / name).write_bytes(_draw(evaluation, measured, index))
            written.append(target / name)
    return written


def draw_curves(evaluation: Evaluation, path: Path) -> list[Path]:
    """Draw the reliability of the joint scores, all data sets in one PNG; nothing where no joint was found."""
    found = {measured.data.name: reliability(measured.pairs, measured.joints) for measured in evaluation.sets}
    curves = {name: curve for name, curve in found.items() if curve}
    return [draw_reliability(curves, path)] if curves else []


def _draw(evaluation: Evaluation, measured: Measured, index: int) -> bytes:
    image, answer, model = measured.data.images[index], measured.answers[index], evaluation.model
    pixels = read_rgb(image.path)
    people = answer.people.select(np.flatnonzero(answer.people.box_scores >= model.box_threshold))
    sides: list[tuple[People, Skeleton, float]] = [
        (_labelled(image), measured.data.skeleton, 0.5),
        (people, model.skeleton, _DRAWN_SCORE),
    ]
    # LSP's pictures are often no larger than a stamp.
    factor = max(1.0, _DRAWN_HEIGHT / image.height)
    enlarged = np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)
    height, width = enlarged.shape[:2]
    drawn = [
        draw_people(PosedPicture(image.id, width, height, enlarge(found, factor), enlarged), skeleton, threshold)
        for found, skeleton, threshold in sides
    ]
    return encode_picture(np.hstack(drawn), "image/jpeg")


def enlarge(people: People, factor: float, origin: npt.ArrayLike = (0.0, 0.0)) -> People:
    """The people in a picture that is ``factor`` times as large and begins at ``origin`` (edge coordinates).

    Boxes are in edge coordinates, joints are points: see :mod:`service.crops`.
    """
    start = np.asarray(origin, np.float64)
    keypoints = people.keypoints.copy()
    keypoints[..., :2] = (keypoints[..., :2] + 0.5 - start) * factor - 0.5
    boxes = (people.boxes.reshape(-1, 2, 2) - start) * factor
    return People(boxes.reshape(-1, 4), people.box_scores, keypoints, people.scores)


def _labelled(image: ImageRecord) -> People:
    people = labelled_people(image)
    keypoints = np.array([person.keypoints for person in people])
    keypoints[..., 2] = keypoints[..., 2] > 0
    boxes = np.array([person.box for person in people])
    return People(boxes, np.ones(len(people)), keypoints, np.ones(len(people)))


def _aic_table(name: str, score: JsonObject) -> Table:
    title = f"AI Challenger's score of {name}: {score['labelled']} people, {score['answered']} answered"
    table = Table("score", "at 0.50", "at 0.75", title=title, title_justify="left")
    table.add_row(_percent(score["score"], score["spread"]), _percent(score["at_0.50"]), _percent(score["at_0.75"]))
    return table


def _crowd_table(name: str, parts: JsonObject) -> Table:
    table = Table("part", "pictures", "AP", title=f"Keypoints by crowding of {name}", title_justify="left")
    for part, row in parts.items():
        table.add_row(part, str(row["pictures"]), _percent(row["AP"], row["spread"]))
    return table


def _pck_table(name: str, pck: JsonObject, kind: str) -> Table:
    title = f"{kind}@{pck['threshold']:g} of {name}: {pck['people']} people, {pck['missed']} of them not found"
    sides: dict[str, dict[str, float]] = defaultdict(dict)
    for joint, rate in pck["joints"].items():
        side, _, part = joint.partition("_")
        paired = side in ("left", "right")
        sides[part if paired else joint][side if paired else "middle"] = rate
    table = Table("joint", "left", "right", "middle", title=title, title_justify="left")
    for joint, rates in sides.items():
        table.add_row(joint, *(_percent(rates.get(side)) if side in rates else "" for side in ("left", "right",
                                                                                               "middle")))  # fmt: skip
    table.add_section()
    table.add_row("mean", "", "", _percent(pck["mean"], pck["spread"]))
    return table


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value * 100:.1f}" + (f" ±{spread * 100:.1f}" if spread is not None else "")
