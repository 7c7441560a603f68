"""Learning-rate schedules: the one that the detector uses, and those of the pose papers by name.

Every schedule is a pure function of the step, so that a resumed run has the rate that it would have had.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from training.recipe import Strict


def cosine_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up to ``peak``, then half a cosine down to a hundredth of it."""
    return peak * Schedule(warmup=warmup).factor(step, steps)


class Schedule(Strict):
    """How the learning rate goes: a linear warm-up, then one of four shapes.

    * ``cosine``: half a cosine down to ``floor``.
    * ``linear``: straight down to ``floor`` (MSPN, RSN: warm-up of 2,400 steps from 0.1, then to 0 at 96,000).
    * ``steps``: times ``decay`` at each of ``milestones``, parts of the run (HRNet and SimpleBaseline: 0.1 at 170/210
      and 200/210; hourglass: 0.2 at half), or every ``every`` steps (CPN: 0.5).
    * ``constant``.
    """

    kind: Literal["cosine", "linear", "steps", "constant"] = "cosine"
    warmup: int = Field(300, ge=0, description="steps of linear warm-up")
    start: float = Field(0.0, ge=0, le=1, description="part of the rate that the warm-up starts from")
    floor: float = Field(0.01, ge=0, le=1, description="part of the rate left at the end (cosine, linear)")
    milestones: tuple[float, ...] = Field((), description="parts of the run after which the rate falls (steps)")
    every: int | None = Field(None, ge=1, description="the rate falls each time so many steps are done (steps)")
    decay: float = Field(0.1, gt=0, lt=1, description="factor of one fall (steps)")

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if any(not 0 < part < 1 for part in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones are rising parts of the run, between 0 and 1, got {self.milestones}")
        given = bool(self.milestones) + (self.every is not None)
        if given != (self.kind == "steps"):
            raise ValueError(f"kind steps needs milestones or every (one of them), no other kind does: {self.kind}")
        return self

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate of step ``step`` (from 0) of ``steps`` is multiplied with."""
        if step < self.warmup:
            # From nothing, the first step gets a part too: a step at rate 0 would be wasted.
            risen = step / self.warmup if self.start else (step + 1) / self.warmup
            return self.start + (1 - self.start) * risen
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        if self.kind == "cosine":
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "linear":
            return self.floor + (1 - self.floor) * (1 - done)
        if self.kind == "steps":
            falls = step // self.every if self.every else sum(step >= part * steps for part in self.milestones)
            return self.decay**falls
        return 1.0
