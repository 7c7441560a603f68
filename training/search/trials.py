"""What a search writes down: one trial a block, and the best blocks trained again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One line of ``trials.jsonl``; ``again`` where the block's first outcome was taken without training."""

    trial: int
    epsilon: float
    code: str
    words: str
    reward: float
    oks: float
    macs: float
    parameters: int
    seconds: float
    again: bool


@dataclass(frozen=True)
class Confirmation:
    """A block trained with other seeds: its OKS and rewards, and its cost."""

    name: str
    code: str
    words: str
    oks: tuple[float, ...]
    rewards: tuple[float, ...]
    macs: float
    parameters: int
