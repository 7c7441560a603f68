"""If these fail, a search learns nothing from its trials, or cannot be repeated."""

from statistics import mean

import numpy as np
import pytest

from training.networks.blocks import RESIDUAL, BlockCode, Layer, LayerType
from training.search.learner import Agent, Learning, epsilon_schedule
from training.search.space import SearchSpace

SPACE = SearchSpace(layers=3)


def alike(code: BlockCode) -> float:
    """A toy reward, best for the residual block alone: the share of layers that are as there."""
    longest = max(len(code.layers), len(RESIDUAL.layers))
    return sum(a == b for a, b in zip(code.layers, RESIDUAL.layers, strict=False)) / longest


def searched(seed: int, trials: int, learning: Learning) -> Agent:
    agent = Agent(SPACE, learning, seed)
    for epsilon in epsilon_schedule(trials):
        code = agent.draw(epsilon)
        agent.remember(code, alike(code))
    return agent


def test_space_is_counted_right() -> None:
    # First layer: 5 on the input. Second: 5 on each of two, 2 joins, end. Third: 15, 6 joins, end. Fourth: end.
    assert [len(SPACE.choices(i)) for i in (1, 2, 3, 4)] == [5, 13, 22, 1]
    assert SPACE.size == 5 * (1 + 12 * (1 + 21))
    rng = np.random.default_rng(0)
    drawn = {SPACE.random_block(rng) for _ in range(4000)}
    assert 900 < len(drawn) <= SPACE.size
    assert all(len(code.layers) <= 4 for code in drawn)


def test_space_keeps_to_its_types_and_refuses_unknown_ones() -> None:
    rng = np.random.default_rng(0)
    narrow = SearchSpace(layers=3, kernels=(1,), types=("conv", "add"))
    layers = {layer for _ in range(200) for layer in narrow.random_block(rng).layers}
    assert {layer.type for layer in layers} == {LayerType.CONV, LayerType.ADD, LayerType.TERMINAL}
    assert {layer.kernel for layer in layers if layer.type is LayerType.CONV} == {1}
    with pytest.raises(ValueError, match=r"unknown layer types.*dropout"):
        SearchSpace(types=("conv", "dropout"))
    with pytest.raises(ValueError, match=r"kernels.*7"):
        SearchSpace(kernels=(3, 7))
    with pytest.raises(ValueError, match="reads a single layer"):
        SearchSpace(types=("add",))


def test_epsilon_falls_as_published() -> None:
    published = [1.0] * 95 + [0.9] * 7 + [0.8] * 7 + [0.7] * 7
    published += [e for e in (0.6, 0.5, 0.4, 0.3, 0.2) for _ in range(10)] + [0.1] * 12
    assert list(epsilon_schedule(178)) == published
    for trials in (1, 10, 96, 1000):
        found = epsilon_schedule(trials)
        assert len(found) == trials and list(found) == sorted(found, reverse=True)
        assert found.count(1.0) == pytest.approx(trials * 95 / 178, abs=1)


def test_a_known_best_block_is_found_far_more_often_than_by_chance() -> None:
    agents = [searched(seed, 160, Learning()) for seed in range(12)]
    learned = mean(sum(code == RESIDUAL for code, _ in agent.memory) for agent in agents)
    by_chance = 160 / SPACE.size
    assert learned > 10 * by_chance
    late = mean(reward for agent in agents for _, reward in agent.memory[-11:])
    early = mean(reward for agent in agents for _, reward in agent.memory[:80])
    assert late > 2 * early


def test_values_by_hand() -> None:
    conv, end = Layer(1, LayerType.CONV, 3, 0), Layer(2, LayerType.TERMINAL)
    short = BlockCode((conv, end))
    agent = Agent(SPACE, Learning(learning_rate=0.5))
    agent.update(short, 0.6)
    # The first values are taken whole: 0.6 for the end, then 0.6 / 2 + 0.6 for the convolution before it.
    assert agent.values == {conv: {end: 0.6}, None: {conv: pytest.approx(0.9)}}
    agent.update(short, 0.2)
    assert agent.values[conv][end] == pytest.approx(0.4)
    assert agent.values[None][conv] == pytest.approx(0.9 + 0.5 * (0.1 + 0.4 - 0.9))
    plain = Agent(SPACE, Learning(learning_rate=0.5, shaping=False, discount=0.5))
    plain.update(short, 0.6)
    assert plain.values[None][conv] == pytest.approx(0.3)


def test_a_layer_is_worth_its_best_continuation() -> None:
    agent = Agent(SPACE, Learning(learning_rate=1.0, shaping=False))
    good, bad = BlockCode.parse("1,1,3,0,0 2,1,3,1,0 3,7,0,0,0"), BlockCode.parse("1,1,3,0,0 2,7,0,0,0")
    agent.update(good, 0.8)
    agent.update(bad, 0.1)
    assert agent.values[None][good.layers[0]] == pytest.approx(0.8)
    agent.memory.append((good, 0.8))
    assert agent.draw(0.0) == good


def test_replay_learns_more_from_the_same_blocks() -> None:
    with_replay, without = (searched(0, 64, Learning(replay=replay)) for replay in (64, 0))
    low, high = (max(agent.values[None].values()) for agent in (without, with_replay))
    assert with_replay.memory[:30] == without.memory[:30]  # drawn at epsilon 1
    assert high != low
    # Learned from every eighth block on: nothing is known before.
    agent = Agent(SPACE, Learning(iteration=8))
    for number in range(8):
        assert agent.values == {}, number
        agent.remember(agent.draw(0.0), 0.5)
    assert agent.values


def test_the_same_trials_lead_to_the_same_blocks() -> None:
    first, second = searched(3, 100, Learning()), searched(3, 100, Learning())
    assert first.memory == second.memory and first.values == second.values
    assert searched(4, 100, Learning()).memory != first.memory
    again = Agent(SPACE, Learning(), 3)
    for code, reward in first.memory[:70]:
        again.remember(code, reward)
    assert again.draw(epsilon_schedule(100)[70]) == first.memory[70][0]


def test_best_is_the_highest_reward_seen() -> None:
    agent = searched(0, 40, Learning())
    assert agent.best[1] == max(alike(code) for code, _ in agent.memory)
    with pytest.raises(ValueError):
        _ = Agent(SPACE).best
