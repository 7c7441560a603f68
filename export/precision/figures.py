"""``python -m export compare-precision``: what another precision costs and brings, as served on this machine."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from export.checkpoints import ExportError
from export.precision.calibration import Pictures, load_pictures, network_input
from export.precision.comparison import LIMITS, Question, answers_of, apart, questions
from export.precision.conversion import chosen_networks, read_configs
from service.engines.base import Array
from service.engines.config import ModelConfig
from service.engines.sessions import OnnxModel, RuntimeSettings
from service.settings import Settings
from training.answers import EvaluationError, InProcess
from training.datasets.coco import DatasetError
from training.evaluate import EvaluationRecipe, evaluate
from training.evaluation_command import RECIPE
from training.recipe import RecipeError, read_recipe

# Rows of a run: what the embedded engine joins at most on a CPU.
_ROWS = 8


@dataclass(frozen=True)
class CompareRequest:
    """What one run of the command line asks for; see ``python -m export compare-precision --help``.

    Attributes:
        repository: in float.
        variants: sibling repositories.
        count: pictures to compare answers on.
        rounds: timed runs of each network, in turn.
        validation: COCO-format annotations and pictures to measure AP on; None for no AP.
        boxes: ``truth``, ``detector``, or both.
        limit: pictures of the validation set.
        box_threshold: lowest box score that is posed; None for the evaluation's own, which is lower than what is
            served and takes ten times as long.
    """

    repository: Path
    variants: tuple[Path, ...]
    data: tuple[Path, Path] | None = None
    count: int = 64
    rounds: int = 20
    validation: tuple[Path, Path] | None = None
    boxes: tuple[str, ...] = ("truth", "detector")
    limit: int | None = None
    box_threshold: float | None = None


def run_compare(request: CompareRequest, console: Console) -> None:
    """Print the tables. Raises ExportError."""
    configs = read_configs(request.repository)
    others = {variant: read_configs(variant) for variant in request.variants}
    names = chosen_networks(configs, ())
    for variant, found in others.items():
        if missing := sorted(set(configs) - set(found)):
            raise ExportError(f"{variant} is no sibling of {request.repository}: it lacks {missing}")
    pictures = load_pictures(request.data, request.count)
    console.print(_network_table(request, configs, others, names, pictures))
    if request.validation:
        console.print(_accuracy_table(request, console))


def _network_table(
    request: CompareRequest, configs: Mapping[str, ModelConfig], others: Mapping[Path, Mapping[str, ModelConfig]],
    names: Sequence[str], pictures: Pictures,
) -> Table:  # fmt: skip
    table = Table(
        "network", "repository", "MB", "pictures/s", "ratio (5 to 95 %)", "CPU ms/picture", "ratio",
        "median px", "p99 px", "p99 score",
        box=MARKDOWN,
    )  # fmt: skip
    for name in names:
        forms = {
            request.repository.name: configs[name],
            **{variant.name: models[name] for variant, models in others.items()},
        }
        times = _timed(list(forms.values()), network_input(configs[name].metadata, pictures.comparison, _ROWS),
                       request.rounds)  # fmt: skip
        wanted = questions(configs, [name], pictures.comparison, request.count)[:1]
        (expected,) = asyncio.run(answers_of(request.repository, wanted))
        for index, (label, config) in enumerate(forms.items()):
            assert config.onnx is not None
            size = f"{config.onnx.stat().st_size / 1e6:.1f}"
            speed, busy = (statistics.median(kind) for kind in times[index])
            own = [f"{_ROWS / speed:.0f}", f"{1e3 * busy / _ROWS:.1f}"]
            if index == 0:
                table.add_row(name, label, size, own[0], "1", own[1], "1", "", "", "")
                continue
            wall, processor = (_ratios(times[0][kind], times[index][kind]) for kind in (0, 1))
            (answer,) = asyncio.run(answers_of(config.source.parent.parent, wanted))
            far = _difference(wanted[0], expected, answer)
            table.add_row(name, label, size, own[0], _spread(wall), own[1], f"{statistics.median(processor):.2f}", *far)
    return table


def _timed(configs: Sequence[ModelConfig], pixels: Array, rounds: int) -> list[tuple[list[float], list[float]]]:
    """Seconds and processor seconds of each run of eight rows, the networks in turn, with the service's threads.

    Processor time hardly changes when something else runs on the machine; the clock does.
    """
    models = [OnnxModel(config, RuntimeSettings()) for config in configs]
    feeds = [{config.metadata.inputs[0].name: pixels} for config in configs]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
    for number in range(rounds + 1):
        for model, feed, (wall, processor) in zip(models, feeds, found, strict=True):
            started, busy = time.perf_counter(), time.process_time()
            model.run(feed)
            if number:  # the first one allocates
                wall.append(time.perf_counter() - started)
                processor.append(time.process_time() - busy)
    return found


def _ratios(base: Sequence[float], own: Sequence[float]) -> list[float]:
    return sorted(one / other for one, other in zip(base, own, strict=True))


def _spread(ratios: Sequence[float]) -> str:
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.05, 0.95))
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def _difference(question: Question, expected: Mapping[str, Array], answer: Mapping[str, Array]) -> list[str]:
    from export.parity import difference

    distances, scores = apart(question, expected, answer)
    found = difference(question.model, "", distances, scores, LIMITS["int8", question.kind])
    return [f"{found.median:.3f}", f"{found.p99:.2f}", f"{found.score:.3f}"]


def _accuracy_table(request: CompareRequest, console: Console) -> Table:
    assert request.validation is not None
    set_name = request.validation[0].stem
    table = Table("repository", "boxes", f"keypoint AP, {set_name}", "change", "box AP", "change", "ms/picture",
                  box=MARKDOWN)  # fmt: skip
    for boxes in request.boxes:
        first: tuple[float, float | None] | None = None
        for repository in (request.repository, *request.variants):
            keypoints, box, milliseconds = _evaluate(repository, boxes, request, console)
            first = first or (keypoints, box)
            table.add_row(
                repository.name, boxes, f"{keypoints:.2f}", f"{keypoints - first[0]:+.2f}",
                "" if box is None else f"{box:.2f}",
                "" if box is None or first[1] is None else f"{box - first[1]:+.2f}", f"{milliseconds:.0f}",
            )  # fmt: skip
    return table


def _evaluate(
    repository: Path, boxes: str, request: CompareRequest, console: Console
) -> tuple[float, float | None, float]:
    """Keypoint AP and box AP in percent, and milliseconds a picture, through the served pipeline."""
    assert request.validation is not None
    annotations, images = request.validation
    data = [{"annotations": str(annotations), "images": str(images), "all_labelled": True}]
    given = [f"data={json.dumps(data)}", f"boxes={boxes}", f"limit={json.dumps(request.limit)}"]
    if request.box_threshold is not None:
        given.append(f"options.box_threshold={request.box_threshold}")
    try:
        recipe = read_recipe(RECIPE, EvaluationRecipe, given)
        service = InProcess(Settings(repository=repository, reload_seconds=0))
        (measured,) = asyncio.run(evaluate(recipe, service, console)).sets
    except (RecipeError, DatasetError, EvaluationError) as error:
        raise ExportError(str(error)) from error
    assert measured.keypoints is not None
    box = None if measured.boxes is None else _percent(measured.boxes.figures["AP"])
    return _percent(measured.keypoints.figures["AP"]), box, 1e3 * measured.seconds / len(measured.answers)


def _percent(figure: float | None) -> float:
    return float("nan") if figure is None else 100 * figure
