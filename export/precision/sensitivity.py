"""Which blocks of a network suffer most from eight bits: each is quantized alone, and the answers are compared.

It does not know how the harms of several blocks add up; the comparison after the choice does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.precision.comparison import Question, Replaced, Run, apart, ask
from export.precision.regions import Block
from service.engines.base import Array

# A joint or box that jumped is wrong, whether by 8 pixels or 80.
_MOST = 8.0
# Less than this is no reason to keep anything in float, pixels.
_NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Finding:
    """A block quantized alone: mean distance in pixels of what counts, each at most 8."""

    block: Block
    harm: float


async def scan(
    blocks: Sequence[Block],
    quantized: Callable[[Block], Run],
    replaced: Callable[[Run], Replaced],
    wanted: Sequence[Question],
    expected: Sequence[Mapping[str, Array]],
    advance: Callable[[], None],
) -> list[Finding]:
    """Quantize every block alone and ask.

    Args:
        blocks: of one network.
        quantized: runs the network with only this block in INT8.
        replaced: the models with the network answered that way.
        wanted, expected: questions and the float network's answers.
        advance: called after each block.
    """
    found = []
    for block in blocks:
        answers = await ask(replaced(quantized(block)), wanted)
        distances: list[Any] = [apart(q, a, b)[0] for q, a, b in zip(wanted, expected, answers, strict=True)]
        found.append(Finding(block, float(np.minimum(np.concatenate(distances), _MOST).mean())))
        advance()
    return found


def keep_in_float(findings: Sequence[Finding], share: float) -> list[Block]:
    """The blocks that buy most accuracy for their cost, worst first.

    Args:
        findings: of :func:`scan`.
        share: most of the multiply-adds that may stay in float, 0..1.
    """
    harmful = [finding for finding in findings if finding.harm > _NEGLIGIBLE]
    kept: list[Block] = []
    # A block of next to no cost comes first whatever it does.
    for finding in sorted(harmful, key=lambda f: -f.harm / max(f.block.share, 1e-4)):
        if sum(block.share for block in kept) + finding.block.share <= share:
            kept.append(finding.block)
    return kept
