"""One export from checkpoints to repository: plan, write aside, compare, publish."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from export.card import Metrics, detector_card, pose_card, read_metrics
from export.checkpoints import DetectorSource, ExportError, PoseSource, read_checkpoints
from export.configs import ModelPlan
from export.parity import Difference, check_detector, check_pose
from export.plans import PlanOptions, plan_detector, plan_pose
from export.repository import CARD, next_version, publish, staging_folder, version_numbers, write_models
from export.samples import load_samples
from service.engines.base import Engine
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from service.errors import ServiceError
from training.conventions import Convention
from training.decoding import Refinement


@dataclass(frozen=True)
class ExportRequest:
    """What one run of the command line asks for; see ``python -m export --help``.

    Attributes:
        metrics: files of ``training evaluate`` for the cards.
        failures: the sheet of failures that the pose model's card shows, where it lies.
        convention, refinement: None for what the checkpoints say, which is ours unless their weights were imported.
    """

    checkpoints: tuple[Path, ...]
    repository: Path
    options: PlanOptions
    keep: int = 2
    check_data: tuple[Path, Path] | None = None
    check_count: int = 64
    metrics: tuple[Path, ...] = ()
    failures: Path | None = None
    convention: Convention | None = None
    refinement: Refinement | None = None


def run_export(request: ExportRequest, console: Console) -> None:
    """Export all checkpoints of the request, or none.

    Raises:
        ExportError: with the reason; the repository is as it was.
    """
    pose, detector = read_checkpoints(request.checkpoints)
    if pose and request.convention:
        pose = replace(pose, convention=request.convention)
    if pose and request.refinement:
        pose = replace(pose, refinement=request.refinement)
    metrics = [read_metrics(path) for path in request.metrics]
    if request.failures and not request.failures.is_file():
        raise ExportError(f"{request.failures}: no such picture of failures")
    with staging_folder(request.repository) as staged:
        cards: dict[str, str] = {}
        found: list[Difference] = []
        if detector:
            found += _stage_detector(detector, request, metrics, staged, cards)
        if pose:
            found += _stage_pose(pose, request, metrics, staged, cards)
        console.print(differences_table(found))
        if failed := [d for d in found if not d.passes]:
            raise ExportError(
                "the exported models do not answer as the trained ones: "
                + "; ".join(f"{d.model}, {d.what}: {_shown(d)}" for d in failed)
            )
        for name, card in cards.items():
            (staged / name / CARD).write_text(card, encoding="utf-8")
        publish(staged, request.repository, request.keep)
    size = sum(path.stat().st_size for path in request.repository.rglob("*") if path.is_file())
    console.print(f"wrote {request.repository}, {size / 1e6:.1f} MB in all", soft_wrap=True)
    if pose:
        _name_leftovers(request, console)


def differences_table(differences: Sequence[Difference]) -> Table:
    """What was compared, and how far apart it is."""
    table = Table("model", "compared", "values", "median px", "p99 px", "largest px", "p99 score", "", box=SIMPLE)
    for d in differences:
        table.add_row(
            d.model, d.what, str(d.count), f"{d.median:.4f}", f"{d.p99:.4f}", f"{d.largest:.3f}", f"{d.score:.5f}",
            "[green]ok" if d.passes else f"[red]over {d.limits.median:g} / {d.limits.p99:g} px / {d.limits.score:g}",
        )  # fmt: skip
    return table


def _shown(d: Difference) -> str:
    return (
        f"median {d.median:.3f} px (limit {d.limits.median:g}), 99th percentile {d.p99:.3f} px "
        f"(limit {d.limits.p99:g}), scores {d.score:.4f} (limit {d.limits.score:g})"
    )


def _stage_detector(
    source: DetectorSource, request: ExportRequest, metrics: Sequence[Metrics], staged: Path, cards: dict[str, str]
) -> list[Difference]:
    """Write the detector's model to ``staged`` and compare it."""
    options = request.options
    plan = plan_detector(source, options)
    _write(staged, [plan], request)
    samples = load_samples(request.check_data, source.data, request.check_count)
    images = samples.letterboxed(source.side)
    found = _on_engine(staged, lambda engine: check_detector(engine, source, plan.name, images))
    cards[plan.name] = detector_card(source, options, found, samples.name, metrics)
    return found


def _stage_pose(
    source: PoseSource, request: ExportRequest, metrics: Sequence[Metrics], staged: Path, cards: dict[str, str]
) -> list[Difference]:
    """Write the pose models to ``staged`` and compare them."""
    options = request.options
    plan = plan_pose(source, options)
    _write(staged, plan.models, request)
    samples = load_samples(request.check_data, source.data, request.check_count)
    crops = samples.crops(source.size, request.check_count)
    found = _on_engine(staged, lambda engine: check_pose(engine, source, plan.ensembles, plan.flips, crops))
    for preset in source.presets:
        name = plan.ensembles[preset.name]
        shown = _from_card(request, name) if name == options.name else None
        cards[name] = pose_card(source, preset, name, options, found, samples.name, metrics, shown)
    return found


def _from_card(request: ExportRequest, name: str) -> str | None:
    """The sheet of failures, from the folder of a model's card."""
    if request.failures is None:
        return None
    return Path(os.path.relpath(request.failures, request.repository / name)).as_posix()


def _write(staged: Path, plans: Sequence[ModelPlan], request: ExportRequest) -> None:
    write_models(staged, plans, next_version(request.repository, [plan.name for plan in plans]))


def _on_engine(
    repository: Path, check: Callable[[Engine], Coroutine[None, None, list[Difference]]]
) -> list[Difference]:
    """Run a comparison on the embedded engine over a staged repository."""

    async def run() -> list[Difference]:
        engine = EmbeddedEngine(repository, RuntimeSettings(spinning=False))
        await engine.start()
        try:
            return await check(engine)
        finally:
            await engine.close()

    try:
        return asyncio.run(run())
    except ServiceError as error:
        raise ExportError(f"the exported models do not run: {error}") from error


def _name_leftovers(request: ExportRequest, console: Console) -> None:
    """Say which models an earlier export of the same name left: they cost memory and answer with old weights."""
    newest = max(version_numbers(request.repository / request.options.name))
    prefix = f"{request.options.name}_"
    for path in sorted(request.repository.glob(f"{prefix}*")):
        numbers = version_numbers(path)
        if numbers and numbers[-1] < newest:
            console.print(f"[yellow]{path.name} is of an earlier export and not part of this one: delete it?")
