"""The learning-rate schedule that all stages share."""

from __future__ import annotations

import math


def cosine_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up to ``peak``, then half a cosine down to a hundredth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
