"""How the maps of a network are supervised beyond their radii: the recipe's ``supervision:`` section.

Everything is off by default: each unit is then taught the radii's own widths, all units and joints count alike.

MSPN (Li et al. 2019), with its five blur windows, quarter weights and hard joints::

    supervision: {kernels: [15, 11, 9, 7, 5], level_weights: [0.25, 0.25, 0.25, 1], hard_joints: 8,
                  visible_only: coarse}

CPN (Chen et al. 2018), whose RefineNet is a stage of one level::

    supervision: {kernels: [15, 11, 9, 7], stage_weights: [0.125, 1], hard_joints: 8, hard_joint_units: last,
                  visible_only: all_but_last}

Their code makes background of joints without a label too; here those never count, since other data sets may lack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from service.skeletons import Skeleton
from training.networks.base import Unit
from training.recipe import Strict

# OpenCV blurs with these rows, not with its formula, when a window of up to 7 is asked for without a sigma; 9 is in
# the table since OpenCV 5 (before, the formula's 1.675 instead of 1.658: no difference that a network could see).
_ROWS: dict[int, tuple[int, ...]] = {
    3: (1, 2, 1),
    5: (1, 4, 6, 4, 1),
    7: (2, 7, 14, 18, 14, 7, 2),
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}


def kernel_sigma(kernel: int) -> float:
    """Standard deviation in cells of ``cv2.GaussianBlur(..., (kernel, kernel), 0)``, by which MSPN and CPN draw labels.

    OpenCV's sigma for a window is ``0.3 * ((kernel - 1) / 2 - 1) + 0.8``; cutting the tails off leaves a little less.

    Raises:
        ValueError: an even kernel, or one below 3.
    """
    if kernel < 3 or kernel % 2 == 0:
        raise ValueError(f"a blur window is odd and at least 3, got {kernel}")
    offsets = np.arange(kernel) - kernel // 2
    formula = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    row = np.array(_ROWS[kernel], float) if kernel in _ROWS else np.exp(-(offsets**2) / (2 * formula**2))
    return float(np.sqrt((row * offsets**2).sum() / row.sum()))


def _not_growing(widths: tuple[float, ...]) -> tuple[float, ...]:
    if any(finer > coarser for coarser, finer in pairwise(widths)):
        raise ValueError(f"widths go from coarse to fine, got {list(widths)}")
    return widths


def _kernels(kernels: tuple[int, ...]) -> tuple[int, ...]:
    for kernel in kernels:
        kernel_sigma(kernel)
    return kernels


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Supervision(Strict):
    """Coarse-to-fine widths, weights of units and joints, hard joints, hard samples."""

    kernels: Annotated[tuple[int, ...], AfterValidator(_kernels), AfterValidator(_not_growing)] = Field(
        (), description="label widths as OpenCV blur windows in cells, coarse to fine; each paper states them so"
    )
    sigmas: Annotated[tuple[Annotated[float, Field(gt=0, le=16)], ...], AfterValidator(_not_growing)] = Field(
        (), description="the same as standard deviations in cells; give one or the other"
    )
    level_weights: tuple[Weight, ...] = Field(
        (1.0,), min_length=1, description="weights of a stage's units, coarse to fine; coarser ones have the first"
    )
    stage_weights: tuple[Weight, ...] = Field(
        (1.0,), min_length=1, description="weights of the stages, the last one's last; earlier ones have the first"
    )
    hard_joints: int | None = Field(
        None, ge=1, description="OHKM: only so many joints of each person count, those of the highest loss"
    )
    hard_joint_units: Literal["finest", "last", "all"] = Field(
        "finest", description="where: each stage's finest unit (MSPN), the last unit (CPN's RefineNet), everywhere"
    )
    visible_only: Literal["none", "coarse", "all_but_last"] = Field(
        "none",
        description="units for which hidden joints (v = 1) are background: all but each stage's finest (MSPN, RSN), "
        "all but the last (CPN's GlobalNet)",
    )
    hard_samples: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (),
        description="stage s + 1 trains on people whose OKS after stage s is below the s-th value (Megvii: 0.8, 0.6)",
    )
    joint_weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {}, description="weights of joints by name, with side or for both sides (HRNet: elbow 1.2, wrist 1.5)"
    )

    @model_validator(mode="after")
    def _fits(self) -> Supervision:
        if self.kernels and self.sigmas:
            raise ValueError(f"give kernels or sigmas, not both: {list(self.kernels)}, {list(self.sigmas)}")
        for field in ("level_weights", "stage_weights"):
            if getattr(self, field)[-1] == 0:
                raise ValueError(f"{field} {list(getattr(self, field))}: the served unit must have a weight")
        return self

    @property
    def widths(self) -> tuple[float, ...]:
        """Standard deviations in cells, coarse to fine; empty when every unit has the radii's own."""
        return self.sigmas or tuple(kernel_sigma(kernel) for kernel in self.kernels)

    def check(self, units: Sequence[Unit], skeleton: Skeleton) -> None:
        """Compare with what is to be trained, before the first step.

        Raises:
            ValueError: too few or too many widths or thresholds for the units, or a joint the skeleton lacks.
        """
        for unit in units:
            self.width_factor(unit)
        later = max(unit.stages for unit in units) - 1
        if len(self.hard_samples) > later:
            raise ValueError(
                f"hard_samples {list(self.hard_samples)}: {len(self.hard_samples)} thresholds, "
                f"but only {later} stages come after the first"
            )
        self.weights_of_joints(skeleton)

    def width_factor(self, unit: Unit) -> float:
        """By how much each radius is wider in this unit; 1 for the finest unit of the last stage, which is served.

        The widths are counted from the fine end. With one more width than levels, every stage but the last is one
        step coarser (MSPN: five kernels, four levels); with more, earlier stages are coarser still.

        Raises:
            ValueError: fewer widths than the unit's stage has levels, or more than stages and levels can use.
        """
        if not (widths := self.widths):
            return 1.0
        spare = len(widths) - unit.levels
        if spare < 0:
            raise ValueError(f"{len(widths)} widths {list(self.kernels or self.sigmas)} for {unit.levels} levels")
        behind = min(unit.stages - 1 - unit.stage, spare)
        finer = unit.levels - 1 - unit.level
        return widths[len(widths) - 1 - finer - behind] / widths[-1]

    def unit_weight(self, unit: Unit) -> float:
        """How much the unit's loss counts: its level's weight times its stage's."""
        level = self.level_weights[max(0, len(self.level_weights) - unit.levels + unit.level)]
        stage = self.stage_weights[max(0, len(self.stage_weights) - unit.stages + unit.stage)]
        return level * stage

    def hard_joints_of(self, unit: Unit) -> int | None:
        """How many joints of each person count in this unit; None for all."""
        chosen = {"all": True, "finest": unit.finest, "last": unit.finest and unit.last_stage}
        return self.hard_joints if chosen[self.hard_joint_units] else None

    def only_visible(self, unit: Unit) -> bool:
        """Whether hidden joints are background in this unit."""
        chosen = {"none": False, "coarse": not unit.finest, "all_but_last": not (unit.finest and unit.last_stage)}
        return chosen[self.visible_only]

    def threshold(self, stage: int) -> float | None:
        """The OKS after the stage before, from which on a sample is too easy for this stage; None: all train it."""
        if stage == 0 or not self.hard_samples:
            return None
        return self.hard_samples[min(stage, len(self.hard_samples)) - 1]

    def weights_of_joints(self, skeleton: Skeleton) -> tuple[float, ...]:
        """K weights in the skeleton's order. Raises ValueError for a name it lacks."""
        plain = [joint.removeprefix("left_").removeprefix("right_") for joint in skeleton.joints]
        for name in self.joint_weights:
            if name not in skeleton.joints and name not in plain:
                raise ValueError(f"joint_weights: {skeleton.name} has no joint {name!r}")
        return tuple(
            self.joint_weights.get(joint, self.joint_weights.get(stem, 1.0))
            for joint, stem in zip(skeleton.joints, plain, strict=True)
        )
