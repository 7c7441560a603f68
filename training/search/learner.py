"""Q-learning of block codes (BlockQNN: Zhong et al. 2018, section 3.2).

The state is the layer chosen last, the action the next layer. The reward of a whole block is known at its end only;
so that short blocks are not preferred at first, each layer before is given ``reward / layers`` (reward shaping).
Blocks are drawn epsilon-greedily, with an epsilon that falls as published, and the values are learned from draws out
of the memory of all blocks so far (experience replay).

Every random draw comes from a generator of (seed, what for, number): agents that have seen the same trials draw the
same blocks, so that a search resumes from its list of trials alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from training.networks.blocks import BlockCode, Layer
from training.recipe import Strict
from training.search.space import SearchSpace, is_complete

# Epsilon and the iterations spent at it (of 64 blocks each, 178 in all).
PUBLISHED_SCHEDULE = (
    (1.0, 95), (0.9, 7), (0.8, 7), (0.7, 7), (0.6, 10), (0.5, 10), (0.4, 10), (0.3, 10), (0.2, 10), (0.1, 12),
)  # fmt: skip
_DRAW, _REPLAY = 0, 1


class Learning(Strict):
    """How values are learned. The published learning rate is 0.01, for 11,392 blocks."""

    learning_rate: float = Field(0.1, gt=0, le=1)
    discount: float = Field(1.0, gt=0, le=1)
    shaping: bool = Field(True, description="reward / layers for each layer before the last")
    replay: int = Field(64, ge=0, description="blocks drawn from memory after each iteration")
    iteration: int = Field(8, ge=1, description="blocks between two replays (64 as published)")


def epsilon_schedule(trials: int) -> tuple[float, ...]:
    """Epsilon of each of ``trials`` blocks: the published shares, rounded so that they add up."""
    total = sum(count for _, count in PUBLISHED_SCHEDULE)
    found: list[float] = []
    passed = 0
    for epsilon, count in PUBLISHED_SCHEDULE:
        passed += count
        found += [epsilon] * (round(passed / total * trials) - len(found))
    return tuple(found)


@dataclass
class Agent:
    """Values of layers after layers, and the memory they are learned from.

    Attributes:
        values: for each state (None at the start of a block), the value of each layer that was tried there.
        memory: blocks and rewards, in the order of :meth:`remember`.
    """

    space: SearchSpace
    learning: Learning = field(default_factory=Learning)
    seed: int = 0
    values: dict[Layer | None, dict[Layer, float]] = field(default_factory=dict)
    memory: list[tuple[BlockCode, float]] = field(default_factory=list)

    def draw(self, epsilon: float) -> BlockCode:
        """The next block: each layer random with probability ``epsilon``, else the best known one."""
        rng = np.random.default_rng((self.seed, _DRAW, len(self.memory)))
        layers: list[Layer] = []
        while not is_complete(layers):
            choices = self.space.choices(len(layers) + 1)
            known = self.values.get(layers[-1] if layers else None, {})
            if known and rng.random() >= epsilon:
                best = max(known.values())
                choices = tuple(layer for layer in choices if known.get(layer) == best)
            layers.append(choices[int(rng.integers(len(choices)))])
        return BlockCode(tuple(layers))

    def remember(self, code: BlockCode, reward: float) -> None:
        """Take a block and its reward into memory; after each full iteration, learn from memory."""
        self.memory.append((code, reward))
        if len(self.memory) % self.learning.iteration:
            return
        rng = np.random.default_rng((self.seed, _REPLAY, len(self.memory)))
        recent = range(len(self.memory) - self.learning.iteration, len(self.memory))
        for index in (*recent, *rng.integers(len(self.memory), size=self.learning.replay)):
            self.update(*self.memory[int(index)])

    def update(self, code: BlockCode, reward: float) -> None:
        """One Bellman update of every layer of a block, from its end to its start."""
        states: Sequence[Layer | None] = (None, *code.layers[:-1])
        for state, action in reversed(tuple(zip(states, code.layers, strict=True))):
            following = self.values.get(action, {})
            if not following:
                target = reward
            else:
                shaped = reward / len(code.layers) if self.learning.shaping else 0.0
                target = shaped + self.learning.discount * max(following.values())
            known = self.values.setdefault(state, {})
            # A first value is taken whole: rewards have no natural zero to start from.
            before = known.get(action, target)
            known[action] = before + self.learning.learning_rate * (target - before)

    @property
    def best(self) -> tuple[BlockCode, float]:
        """The block of the highest reward seen, and that reward. Raises ValueError when there is none yet."""
        return max(self.memory, key=lambda seen: seen[1])
