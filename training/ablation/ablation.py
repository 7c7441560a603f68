"""Ablations: many short trainings and measurements that differ in one thing each, over several seeds.

``python -m training ablate`` trains what is missing in the output folder, measures it through the service's own
pipeline and prints one table; stopped, it goes on where it was. A training is one ``python -m training pose`` of its
own, a measurement one JSON file beside it, so nothing is done twice and everything can be looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from rich.console import Console

from service.engine_choice import open_engine
from service.options import PoseOptions
from service.settings import Settings
from training.answers import InProcess
from training.checkpoint_engine import CheckpointEngine
from training.decoding import Refinement
from training.evaluate import EvaluationRecipe, EvaluationSource, evaluate, summarize
from training.pose_recipe import PoseRecipe
from training.recipe import DataPath, RecipeError, Strict, read_recipe, set_field

console = Console()
quiet = Console(stderr=True, quiet=True)


class AblationError(ValueError):
    """An ablation that cannot go on; says what failed and where to look."""


class Row(Strict):
    """One line of a comparison: what is trained, and how it is measured."""

    label: str
    training: str | tuple[str, ...] = Field("base", description="several: networks of one radius each, fused")
    boxes: Literal["detector", "truth"] = "truth"
    options: dict[str, Any] = Field(default_factory=dict, description="of the service, beside the recipe's own")
    refinement: Refinement = "taylor"

    @property
    def trainings(self) -> tuple[str, ...]:
        """Names of what it needs."""
        return (self.training,) if isinstance(self.training, str) else self.training


class Comparison(Strict):
    """A question, what its source says, and the rows that answer it; the first row is what others are compared to."""

    question: str
    source: str = Field(description="who claims what")
    rows: tuple[Row, ...] = Field(min_length=2)
    reading: str = Field("", description="what our figures say, written after they were seen")


class AblationRecipe(Strict):
    """All that an ablation depends on."""

    pose: dict[str, Any] = Field(default_factory=dict, description="the pose recipe that every training starts from")
    trainings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name to the fields (dotted) it changes, in this order"
    )
    checkpoints: dict[str, DataPath] = Field(
        default_factory=dict, description="name to the model.pt of a training that was done before"
    )
    comparisons: tuple[Comparison, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    data: tuple[EvaluationSource, ...] = Field(min_length=1, description="with true boxes")
    detector_data: tuple[EvaluationSource, ...] = Field(min_length=1, description="with the detector's boxes")
    options: dict[str, Any] = Field(default_factory=dict, description="the service's, for every measurement")

    @model_validator(mode="after")
    def _known(self) -> AblationRecipe:
        if both := sorted(self.trainings.keys() & self.checkpoints.keys()):
            raise ValueError(f"in trainings and in checkpoints: {', '.join(both)}")
        if self.checkpoints and len(self.seeds) > 1:
            raise ValueError(f"checkpoints are of one seed, seeds names {len(self.seeds)}")
        known = self.trainings.keys() | self.checkpoints.keys()
        for comparison in self.comparisons:
            for row in comparison.rows:
                if unknown := [name for name in row.trainings if name not in known]:
                    raise ValueError(f"{comparison.question} / {row.label}: no training {', '.join(unknown)}")
        return self


@dataclass(frozen=True)
class Job:
    """One training of one seed, where it lies, and the checkpoint that it ends with."""

    name: str
    seed: int
    folder: Path
    checkpoint: Path


class Ablation:
    """An ablation's folder: ``<training>-<seed>/`` for each run, ``measured/`` for each measurement."""

    def __init__(self, recipe: AblationRecipe, output: Path) -> None:
        self.recipe, self.output = recipe, output
        (output / "measured").mkdir(parents=True, exist_ok=True)

    def job(self, name: str, seed: int) -> Job:
        """Where a training lies."""
        folder = self.output / f"{name}-{seed}"
        return Job(name, seed, folder, self.recipe.checkpoints.get(name, folder / "model.pt"))

    def jobs(self, only: Sequence[str] = ()) -> list[Job]:
        """All trainings that are not done yet: every training of the first seed, then of the next."""
        if unknown := [name for name in only if name not in self.recipe.trainings]:
            raise AblationError(f"no training {', '.join(unknown)}; there are {', '.join(self.recipe.trainings)}")
        every = [self.job(name, seed) for seed in self.recipe.seeds for name in only or self.recipe.trainings]
        return [job for job in every if not job.checkpoint.exists()]

    def train(self, jobs: Sequence[Job], parallel: int) -> None:
        """Run them, ``parallel`` at a time. Raises AblationError naming the log of the first that fails."""
        for job in jobs:
            self._check(job)
        waiting = list(jobs)
        running: list[tuple[Job, subprocess.Popen[bytes]]] = []
        try:
            while waiting or running:
                for job in [job for job in waiting if self._may_start(job)][: parallel - len(running)]:
                    waiting.remove(job)
                    running.append((job, self._start(job)))
                    console.print(f"{time.strftime('%H:%M:%S')} {job.folder.name} started, {len(waiting)} to go")
                time.sleep(0.5)
                for job, process in list(running):
                    if process.poll() is None:
                        continue
                    running.remove((job, process))
                    if process.returncode or not job.checkpoint.exists():
                        raise AblationError(f"{job.folder.name} ended with {process.returncode}: see {job.folder}.log")
        finally:
            for _, process in running:
                process.terminate()

    def pose_recipe(self, job: Job) -> dict[str, Any]:
        """The training's whole recipe; ``{folder}`` and ``{seed}`` in its texts are filled in."""
        raw = json.loads(json.dumps(self.recipe.pose))
        for field, value in self.recipe.trainings[job.name].items():
            set_field(raw, field, value)
        raw["seed"] = job.seed
        filled: dict[str, Any] = _fill(raw, {"folder": str(self.output), "seed": str(job.seed)})
        return filled

    def measure(self) -> None:
        """Measure every row of every seed whose trainings are done, and keep the figures.

        Raises:
            AblationError: a checkpoint of the recipe is not there.
        """
        for name, path in self.recipe.checkpoints.items():
            if not path.exists():
                raise AblationError(f"checkpoint {name}: no file {path}")
        asyncio.run(self._measure())

    def figures(self, row: Row, seed: int) -> dict[str, Any] | None:
        """What was measured, by data set; None when it was not yet."""
        path = self._figures_path(row, seed)
        return json.loads(path.read_text())["sets"] if path.exists() else None

    async def _measure(self) -> None:
        # One engine for all, so that the detector looks at each picture once.
        detector = open_engine(Settings())
        known: CheckpointEngine | None = None
        try:
            for seed, row in self._missing():
                paths = [self.job(name, seed).checkpoint for name in row.trainings]
                engine = CheckpointEngine(paths, detector, refinement=row.refinement)
                if known is not None:
                    engine.remember(known)
                known = engine
                sources = self.recipe.data if row.boxes == "truth" else self.recipe.detector_data
                options = PoseOptions.model_validate({**self.recipe.options, **row.options})
                recipe = EvaluationRecipe(data=sources, boxes=row.boxes, options=options, resamples=0)
                summary = summarize(await evaluate(recipe, InProcess(engine=engine), quiet))
                path = self._figures_path(row, seed)
                path.write_text(json.dumps(summary, indent=1) + "\n")
                console.print(f"{time.strftime('%H:%M:%S')} measured {path.stem}")
        finally:
            await detector.close()

    def _missing(self) -> Iterator[tuple[int, Row]]:
        for comparison in self.recipe.comparisons:
            for row in comparison.rows:
                for seed in self.recipe.seeds:
                    done = all(self.job(name, seed).checkpoint.exists() for name in row.trainings)
                    if done and not self._figures_path(row, seed).exists():
                        yield seed, row

    def _figures_path(self, row: Row, seed: int) -> Path:
        parts = ["+".join(row.trainings), row.boxes]
        parts += [f"{name}={value}" for name, value in sorted(row.options.items())]
        parts += [row.refinement] if row.refinement != "taylor" else []
        name = "_".join(parts).replace("/", "-").replace(" ", "")
        return self.output / "measured" / f"{name}-{seed}.json"

    def _may_start(self, job: Job) -> bool:
        """A training that starts from another's checkpoint waits for it."""
        init = self.pose_recipe(job).get("init")
        return init is None or Path(init).exists()

    def _check(self, job: Job) -> None:
        """A mistake is told before the first training, not hours later."""
        try:
            PoseRecipe.model_validate(self.pose_recipe(job))
        except ValidationError as error:
            reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise AblationError(f"training {job.name}: {reasons}") from error

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        job.folder.mkdir(parents=True, exist_ok=True)
        recipe = job.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self.pose_recipe(job), sort_keys=False))
        command = [sys.executable, "-m", "training", "pose", "--recipe", str(recipe), "--output", str(job.folder)]
        if (job.folder / "last.pt").exists():
            command.append("--resume")
        # Without these glibc gives memory back after each step: a tenth of the time on a CPU.
        environment = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", **os.environ}
        with job.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list):
        return [_fill(each, names) for each in value]
    if isinstance(value, dict):
        return {key: _fill(each, names) for key, each in value.items()}
    return value


def read_ablation(path: Path, overrides: Sequence[str] = ()) -> AblationRecipe:
    """Read an ablation's YAML. Raises RecipeError naming file, field and value."""
    recipe = read_recipe(path, AblationRecipe, overrides)
    for comparison in recipe.comparisons:
        for row in comparison.rows:
            try:
                PoseOptions.model_validate({**recipe.options, **row.options})
            except ValueError as error:
                raise RecipeError(f"{path}: {comparison.question} / {row.label}: {error}") from error
    return recipe
