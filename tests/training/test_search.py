"""If these fail, a search loses its trials, measures something else than its blocks, or hands out no usable block."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from service.oks import pairwise_oks
from service.skeletons import SKELETONS
from training.datasets.coco import CocoSet
from training.datasets.reading import read_set
from training.networks.blocks import RESIDUAL, BlockCode
from training.networks.hourglass import HourglassConfig
from training.networks.registry import network_config
from training.recipe import DataSource, RecipeError
from training.run import RunError
from training.search.curve import epsilon_means, summary_lines
from training.search.learner import epsilon_schedule
from training.search.proxy import Outcome, Price, Proxy, ProxyTask, small_crops
from training.search.search import SearchRecipe, confirm, read_trials, run_trials, search_blocks
from training.search.space import SearchSpace

CONV = BlockCode.parse("1,1,3,0,0 2,7,0,0,0")
IDENTITY = BlockCode.parse("1,4,0,0,0 2,7,0,0,0")


class Toy:
    """A task without training: a block's worth is a fixed, odd number of its code."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def run(self, code: BlockCode, seed: int | None = None) -> Outcome:
        self.asked.append((str(code), seed))
        worth = sum((i + 1) * ord(letter) for i, letter in enumerate(str(code))) % 997 / 997
        return Outcome(worth, worth + (seed or 0) / 100, 1e6, 1000, 0.5)


def recipe(**changes: object) -> SearchRecipe:
    source = DataSource(annotations=Path("a.json"), images=Path("a"))
    return SearchRecipe(data=(source,), trials=60, space=SearchSpace(layers=2)).model_copy(update=changes)


def test_each_trial_is_a_line_and_a_known_block_is_not_trained_again(tmp_path: Path) -> None:
    task = Toy()
    trials = run_trials(recipe(), task, tmp_path / "trials.jsonl")
    assert read_trials(tmp_path / "trials.jsonl") == trials
    assert [t.epsilon for t in trials] == list(epsilon_schedule(60))
    assert len(task.asked) == len({t.code for t in trials}) < 60
    assert sum(t.again for t in trials) == 60 - len(task.asked)
    assert all(t.words == BlockCode.parse(t.code).words for t in trials)


@pytest.mark.parametrize("strategy", ["q-learning", "random"])
def test_a_resumed_search_draws_the_same_blocks(tmp_path: Path, strategy: str) -> None:
    whole = run_trials(recipe(strategy=strategy), Toy(), tmp_path / "whole.jsonl")
    path = tmp_path / "cut.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:41]) + lines[41][:30])  # killed in the middle of a line
    task = Toy()
    assert run_trials(recipe(strategy=strategy), task, path) == whole
    assert path.read_text() == "".join(lines)
    assert len(task.asked) < 60 - 40


def test_random_blocks_learn_nothing(tmp_path: Path) -> None:
    trials = run_trials(recipe(strategy="random"), Toy(), tmp_path / "trials.jsonl")
    assert {t.epsilon for t in trials} == {1.0}
    guided = run_trials(recipe(), Toy(), tmp_path / "guided.jsonl")
    shared = list(epsilon_schedule(60)).count(1.0)
    # Both explore alike at first; then one comes back to what was good.
    assert [t.code for t in trials[:shared]] == [t.code for t in guided[:shared]]
    assert len({t.code for t in guided[-12:]}) < len({t.code for t in trials[-12:]})


def test_foreign_or_broken_trials_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = run_trials(recipe(trials=4), Toy(), path)
    path.write_text(json.dumps(vars(replace(trials[0], code=str(RESIDUAL)))) + "\n")
    with pytest.raises(RunError, match=r"trials\.jsonl: trial 0 is"):
        run_trials(recipe(trials=4), Toy(), path)
    path.write_text('{"trial": 0}\n')
    with pytest.raises(RunError, match=r"trials\.jsonl: line 1 is no trial"):
        read_trials(path)


def test_best_blocks_are_trained_again_with_other_seeds(tmp_path: Path) -> None:
    chosen = recipe(confirm=2, confirm_seeds=3)
    trials = run_trials(chosen, Toy(), tmp_path / "trials.jsonl")
    task = Toy()
    confirmed = confirm(chosen, task, trials)
    best = sorted({t.code: t.reward for t in trials}.items(), key=lambda item: -item[1])[:2]
    assert [c.code for c in confirmed] == [str(RESIDUAL), *(code for code, _ in best)]
    assert [seed for _, seed in task.asked] == [1, 2, 3] * 3  # the search itself had seed 0
    assert confirmed[1].rewards == pytest.approx([best[0][1] + s / 100 for s in (1, 2, 3)])
    assert sum(count for _, count, _, _ in epsilon_means(trials)) == 60
    assert len(list(summary_lines(trials, confirmed))) == 2 + len(set(epsilon_schedule(60))) + 1 + 2 + 3 + 1


@pytest.fixture
def rendered(rendered_data: Path) -> list[CocoSet]:
    source = DataSource(annotations=rendered_data / "annotations.json", images=rendered_data / "images")
    return [read_set(source)]


def proxy(**changes: object) -> Proxy:
    return Proxy(size=64, width=8, depth=2, holdout=0.4, min_joints=3, steps=2, batch=4).model_copy(update=changes)


def test_outcome_is_repeatable_and_depends_on_the_seed(rendered: list[CocoSet]) -> None:
    torch.set_num_threads(1)
    task = ProxyTask(rendered, SKELETONS["coco17"], proxy(), Price())
    torch.manual_seed(0)
    first = task.run(CONV)
    torch.manual_seed(1)
    assert replace(task.run(CONV), seconds=0) == replace(first, seconds=0)
    assert task.run(CONV, 1).oks != first.oks
    assert 0 <= first.oks <= 1


def test_training_pays(rendered: list[CocoSet]) -> None:
    def oks(steps: int) -> float:
        task = ProxyTask(rendered, SKELETONS["coco17"], proxy(steps=steps), Price())
        task.held = task.train  # learned by heart: that is what so few people allow
        return task.run(CONV).oks

    assert oks(60) > oks(1) + 0.1


def test_reward_is_oks_less_the_price_of_work_and_density(rendered: list[CocoSet]) -> None:
    task = ProxyTask(rendered, SKELETONS["coco17"], proxy(steps=1), Price(macs=0.1, density=0.3))
    macs = {code: task.cost(code) for code in (RESIDUAL, CONV, IDENTITY)}
    assert macs[RESIDUAL] > macs[CONV] > macs[IDENTITY]
    found = task.run(CONV)
    expected = 0.1 * np.log(macs[CONV] / macs[RESIDUAL]) + 0.3 * np.log((2 / 3) / 1)
    assert found.oks - found.reward == pytest.approx(expected)
    assert task.penalty(RESIDUAL, macs[RESIDUAL]) == 0
    # Cells of the blocks of a depth-2 hourglass on 16x16 maps: skip and the block behind it; enter, leave and skip
    # of the half size; enter, leave and middle of the quarter size. Each has one 3x3 convolution of 8 channels.
    cells = 2 * 16 * 16 + 3 * 8 * 8 + 3 * 4 * 4
    assert macs[CONV] - macs[IDENTITY] == pytest.approx(9 * 8 * 8 * cells)


def test_crops_are_the_services_and_oks_is_that_of_the_picture(rendered: list[CocoSet]) -> None:
    from training.datasets.union import pose_samples

    samples, _, _ = pose_samples(rendered, SKELETONS["coco17"], min_joints=3, holdout=0.0)
    batch = small_crops(samples, 64)
    assert batch.crops.shape == (len(samples), 64, 64, 3) and len(batch.areas) == len(samples)
    sigmas = SKELETONS["coco17"].sigmas
    for i, sample in enumerate(samples[:4]):
        known = batch.labelled[i].numpy() > 0
        truth, crop = sample.keypoints[:, :2], batch.points[i].double().numpy()
        # One crop pixel off is as bad as the same distance in the picture.
        scale = np.ptp(truth[known, 0]) / np.ptp(crop[known, 0])
        chosen = [s for s, k in zip(sigmas, known, strict=True) if k]
        near = pairwise_oks((crop + 1)[None, known], crop[None, known], float(batch.areas[i]), chosen)
        far = pairwise_oks((truth + scale)[None, known], truth[None, known], sample.area, chosen)
        assert near == pytest.approx(far, rel=1e-3)


def test_mirrored_people_keep_their_sides(rendered: list[CocoSet]) -> None:
    task = ProxyTask(rendered, SKELETONS["coco17"], proxy(), Price())
    batch = task.train
    flipped = task._mirrored(batch, torch.ones(len(batch), dtype=torch.bool))
    left, right = (SKELETONS["coco17"].joints.index(f"{side}_wrist") for side in ("left", "right"))
    torch.testing.assert_close(flipped.points[:, left, 0], 63 - batch.points[:, right, 0])
    torch.testing.assert_close(flipped.points[:, left, 1], batch.points[:, right, 1])
    assert bool((flipped.crops == batch.crops.flip(2)).all())
    same = task._mirrored(batch, torch.zeros(len(batch), dtype=torch.bool))
    torch.testing.assert_close(same.points, batch.points)


def written(folder: Path, data: Path, **changes: object) -> Path:
    source = {"annotations": str(data / "annotations.json"), "images": str(data / "images")}
    settings = {
        "data": [source],
        "skeleton": "coco17",
        "trials": 3,
        "space": {"layers": 2},
        "proxy": proxy().model_dump(),
        "confirm": 1,
        "confirm_seeds": 2,
        **changes,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_one_command_leaves_curve_trials_and_a_block_to_train(tmp_path: Path, rendered_data: Path) -> None:
    output = tmp_path / "run"
    path = search_blocks(written(tmp_path, rendered_data), output)
    found = yaml.safe_load(path.read_text())["network"]
    config = network_config(found)
    assert isinstance(config, HourglassConfig) and config.block in {
        t.code for t in read_trials(output / "trials.jsonl")
    }
    assert config.build(17, ("medium",)).joints == 17
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    confirmed = json.loads((output / "confirmed.json").read_text())
    assert [c["name"] for c in confirmed] == ["residual", "found 1"] and len(confirmed[0]["oks"]) == 2
    with pytest.raises(RunError, match="pass --resume"):
        search_blocks(tmp_path / "search.yaml", output)
    with pytest.raises(RunError, match="another recipe"):
        search_blocks(tmp_path / "search.yaml", output, ["seed=1"], resume=True)
    before = (output / "trials.jsonl").read_text()
    search_blocks(tmp_path / "search.yaml", output, resume=True)
    assert (output / "trials.jsonl").read_text() == before


def test_bad_recipes_are_refused_with_field_and_value(tmp_path: Path, rendered_data: Path) -> None:
    with pytest.raises(RecipeError, match=r"space\.types.*unknown layer types.*dropout"):
        search_blocks(written(tmp_path, rendered_data, space={"types": ["conv", "dropout"]}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"holdout 1e-06 leaves nobody"):
        search_blocks(written(tmp_path, rendered_data), tmp_path / "run", ["proxy.holdout=1.0e-6"])


def test_the_committed_recipe_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.recipe import read_recipe

    monkeypatch.setenv("TRITONPOSE_DATA", "/data")
    path = Path(__file__).parents[2] / "training" / "recipes" / "search.yaml"
    assert read_recipe(path, SearchRecipe).strategy == "q-learning"
