"""Search for a network block by Q-learning (Team OKS 2017, slides "Explore new architecture"; BlockQNN).

Every trial is a line of ``trials.jsonl``, written when it is known. That file is the whole state of a search: what is
drawn next follows from the trials before, so that a resumed search draws the same blocks as an uninterrupted one.
At the end the best blocks are trained again with other seeds beside the residual block: the best of many noisy
rewards is partly luck, and these runs show how much.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol

import torch
import yaml
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.skeletons import SKELETONS
from training.datasets.reading import read_set
from training.networks.blocks import RESIDUAL, BlockCode, BlockError
from training.recipe import DataSource, Strict, read_recipe
from training.run import RunError
from training.search.curve import draw_curve, summary_lines
from training.search.learner import Agent, Learning, epsilon_schedule
from training.search.proxy import Outcome, Price, Proxy, ProxyTask
from training.search.space import SearchSpace
from training.search.trials import Confirmation, Trial

console = Console()


class SearchRecipe(Strict):
    """All that a search depends on."""

    data: tuple[DataSource, ...] = Field(min_length=1)
    skeleton: Literal["coco17", "lsp14", "aic14", "crowdpose14", "mpii16", "union19"] = "union19"
    trials: int = Field(128, ge=1, description="blocks drawn; one that was drawn before is not trained again")
    strategy: Literal["q-learning", "random"] = "q-learning"
    space: SearchSpace = SearchSpace()
    learning: Learning = Learning()
    proxy: Proxy = Proxy()
    price: Price = Price()
    confirm: int = Field(3, ge=0, description="best blocks that are trained again at the end")
    confirm_seeds: int = Field(3, ge=1, description="how often, each time with another seed")
    threads: int = Field(1, ge=1, description="CPU threads; outcomes are repeatable with the same number only")
    seed: int = 0


class Task(Protocol):
    """What a search needs of its task."""

    def run(self, code: BlockCode, seed: int | None = None) -> Outcome:
        """What a block is worth."""
        ...


def search_blocks(
    recipe_path: Path, output: Path, overrides: Sequence[str] = (), *, resume: bool = False, random: bool = False
) -> Path:
    """Run a search; returns the path of ``best.yaml``, a recipe's ``network`` section with the best block.

    Raises:
        RecipeError, DatasetError: the recipe or its data.
        RunError: ``output`` holds a search already, or with ``resume`` one of another recipe.
    """
    recipe = read_recipe(recipe_path, SearchRecipe, [*overrides, *(["strategy=random"] if random else [])])
    torch.set_num_threads(recipe.threads)
    trials_file = _open(output, recipe, resume)
    sets = [read_set(source) for source in recipe.data]
    task = ProxyTask(sets, SKELETONS[recipe.skeleton], recipe.proxy, recipe.price)
    console.print(
        f"{len(task.train)} people to train on, {len(task.held)} to measure on; {recipe.space.size:,} codes, "
        f"{recipe.trials} trials by {recipe.strategy}"
    )
    trials = run_trials(recipe, task, trials_file)
    confirmed = confirm(recipe, task, trials)
    (output / "confirmed.json").write_text(json.dumps([asdict(c) for c in confirmed], indent=1) + "\n")
    draw_curve(output / "curve.png", trials, confirmed[0].rewards, recipe.strategy)
    for line in summary_lines(trials, confirmed):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    best = max(confirmed[1:] or confirmed, key=lambda c: statistics.mean(c.rewards))
    path = output / "best.yaml"
    network = {"name": "hourglass", "stacks": 2, "width": 32, "growth": 32, "dense": True, "block": best.code}
    path.write_text(f"# {best.words}\n" + yaml.safe_dump({"network": network}, sort_keys=False, width=1000))
    console.print(f"wrote {path}")
    return path


def run_trials(recipe: SearchRecipe, task: Task, path: Path) -> list[Trial]:
    """All trials, those of an earlier part in ``path`` taken from there. Raises RunError when they do not fit."""
    trials: list[Trial] = []
    earlier = read_trials(path)
    schedule = epsilon_schedule(recipe.trials) if recipe.strategy == "q-learning" else (1.0,) * recipe.trials
    agent = Agent(recipe.space, recipe.learning, recipe.seed)
    known: dict[str, Outcome] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, path.open("a") as lines:
        bar = progress.add_task("search", total=recipe.trials)
        for number, epsilon in enumerate(schedule):
            code = agent.draw(epsilon)
            if number < len(earlier):
                trial = earlier[number]
                if trial.code != str(code):
                    raise RunError(f"{path}: trial {number} is {trial.code!r}, this recipe draws {str(code)!r}")
                outcome = Outcome(trial.oks, trial.reward, trial.macs, trial.parameters, trial.seconds)
            else:
                again = str(code) in known
                outcome = known[str(code)] if again else task.run(code)
                trial = _trial(number, epsilon, code, outcome, again)
                lines.write(json.dumps(asdict(trial)) + "\n")
                lines.flush()
            known.setdefault(str(code), outcome)
            trials.append(trial)
            agent.remember(code, outcome.reward)
            best, reward = agent.best
            progress.update(bar, advance=1, description=f"epsilon {epsilon:.1f}, best {reward:.3f}: {best.words}")
    return trials


def _trial(number: int, epsilon: float, code: BlockCode, outcome: Outcome, again: bool) -> Trial:
    seconds = 0.0 if again else round(outcome.seconds, 2)
    return Trial(
        number, epsilon, str(code), code.words, outcome.reward, outcome.oks, outcome.macs, outcome.parameters,
        seconds, again,
    )  # fmt: skip


def confirm(recipe: SearchRecipe, task: Task, trials: Iterable[Trial]) -> list[Confirmation]:
    """The residual block and the best different blocks, each trained with seeds that the search did not use."""
    ranked = sorted({t.code: t.reward for t in trials}.items(), key=lambda item: -item[1])
    found = [(f"found {place}", BlockCode.parse(code)) for place, (code, _) in enumerate(ranked[: recipe.confirm], 1)]
    confirmed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("confirm", total=(1 + len(found)) * recipe.confirm_seeds)
        for name, code in [("residual", RESIDUAL), *found]:
            outcomes = []
            for seed in range(recipe.confirm_seeds):
                outcomes.append(task.run(code, recipe.proxy.seed + 1 + seed))
                progress.update(bar, advance=1, description=f"confirm {name}")
            first = outcomes[0]
            oks, rewards = tuple(o.oks for o in outcomes), tuple(o.reward for o in outcomes)
            confirmed.append(Confirmation(name, str(code), code.words, oks, rewards, first.macs, first.parameters))
    return confirmed


def read_trials(path: Path) -> list[Trial]:
    """Trials of a file, without a last line that a kill cut short. Raises RunError naming any other bad line."""
    if not path.exists():
        return []
    whole, _, rest = path.read_text().rpartition("\n")
    trials = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            trial = Trial(**json.loads(line))
            BlockCode.parse(trial.code)
        except (TypeError, ValueError, BlockError) as error:
            raise RunError(f"{path}: line {number} is no trial: {error}") from error
        trials.append(trial)
    if rest:
        path.write_text(whole + "\n" if whole else "")
    return trials


def _open(output: Path, recipe: SearchRecipe, resume: bool) -> Path:
    """Checks and claims the folder; returns the path of its trials."""
    trials, kept = output / "trials.jsonl", output / "recipe.json"
    settings = json.dumps(recipe.model_dump(mode="json"), indent=1) + "\n"
    if kept.exists():
        if not resume:
            raise RunError(f"{output} holds a search already: pass --resume to go on, or name another folder")
        if kept.read_text() != settings:
            raise RunError(f"{output} holds a search with another recipe ({kept}): name another folder")
    output.mkdir(parents=True, exist_ok=True)
    kept.write_text(settings)
    return trials
