"""If these fail, a recipe that names a paper's supervision trains something else under that name."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from service.skeletons import AIC14, COCO17
from training.networks.base import Unit
from training.supervision import Supervision, kernel_sigma


def _stage(stage: int, stages: int, levels: int = 4) -> list[Unit]:
    return [Unit(stage, stages, level, levels) for level in range(levels)]


def _kernels_of(supervision: Supervision, units: list[Unit]) -> list[int]:
    """The window each unit is taught with, found back from its width."""
    by_sigma = {round(kernel_sigma(k), 6): k for k in supervision.kernels}
    finest = kernel_sigma(supervision.kernels[-1])
    return [by_sigma[round(supervision.width_factor(unit) * finest, 6)] for unit in units]


@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11, 13, 15, 17, 21, 23])
def test_kernel_sigma_is_the_spread_of_what_opencv_blurs(kernel: int) -> None:
    point = np.zeros((1, 63), np.float64)
    point[0, 31] = 1
    row = cv2.GaussianBlur(point, (kernel, 1), 0)[0]
    offsets = np.arange(63) - 31.0
    measured = np.sqrt((row * offsets**2).sum() / row.sum())
    # OpenCV 5 has a row of its own for 9; the formula before it is 1 % wider.
    assert kernel_sigma(kernel) == pytest.approx(measured, rel=0.02 if kernel == 9 else 1e-3)


@pytest.mark.parametrize("kernel", [0, 1, 4, -3])
def test_an_impossible_kernel_is_refused(kernel: int) -> None:
    with pytest.raises(ValidationError, match=f"odd and at least 3, got {kernel}"):
        Supervision(kernels=(15, kernel))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_mspn_units_have_the_papers_kernels(stages: int) -> None:
    supervision = Supervision(kernels=(15, 11, 9, 7, 5))
    for stage in range(stages - 1):
        assert _kernels_of(supervision, _stage(stage, stages)) == [15, 11, 9, 7]
    # RSN's single stage is its last one too: 11, 9, 7, 5.
    assert _kernels_of(supervision, _stage(stages - 1, stages)) == [11, 9, 7, 5]


def test_cpn_teaches_refinement_with_the_finest_global_kernel() -> None:
    supervision = Supervision(kernels=(15, 11, 9, 7))
    assert _kernels_of(supervision, _stage(0, 2)) == [15, 11, 9, 7]
    assert _kernels_of(supervision, [Unit(1, 2)]) == [7]


def test_stacks_of_an_hourglass_can_go_from_coarse_to_fine() -> None:
    supervision = Supervision(kernels=(11, 9, 7))
    assert _kernels_of(supervision, [Unit(s, 4) for s in range(4)]) == [11, 11, 9, 7]


def test_sigmas_say_the_same_in_cells() -> None:
    supervision = Supervision(sigmas=(3.0, 2.0, 1.5))
    assert [supervision.width_factor(unit) for unit in _stage(0, 1, levels=3)] == [2.0, pytest.approx(4 / 3), 1.0]
    assert [Supervision().width_factor(unit) for unit in _stage(0, 2)] == [1.0] * 4


def test_weights_of_units_are_those_of_their_level_and_stage() -> None:
    mspn = Supervision(level_weights=(0.25, 1))
    assert [mspn.unit_weight(unit) for unit in _stage(0, 2) + _stage(1, 2)] == [0.25, 0.25, 0.25, 1] * 2
    cpn = Supervision(stage_weights=(0.25, 1))
    assert [cpn.unit_weight(unit) for unit in [*_stage(0, 2), Unit(1, 2)]] == [0.25] * 4 + [1]
    assert Supervision().unit_weight(Unit(3, 8)) == 1


def test_hard_joints_are_sought_in_the_units_asked_for() -> None:
    units = _stage(0, 2) + _stage(1, 2)
    chosen = {"all": [8] * 8, "finest": [None, None, None, 8] * 2, "last": [None] * 7 + [8]}
    for where, expected in chosen.items():
        supervision = Supervision(hard_joints=8, hard_joint_units=where)  # type: ignore[arg-type]
        assert [supervision.hard_joints_of(unit) for unit in units] == expected
    assert {Supervision().hard_joints_of(unit) for unit in units} == {None}


def test_thresholds_of_the_stages_are_megviis() -> None:
    supervision = Supervision(hard_samples=(0.8, 0.6))
    assert [supervision.threshold(stage) for stage in range(4)] == [None, 0.8, 0.6, 0.6]
    assert Supervision().threshold(1) is None


def test_joint_weights_go_by_name() -> None:
    weights = Supervision(joint_weights={"elbow": 1.2, "left_wrist": 1.5}).weights_of_joints(COCO17)
    assert {joint: w for joint, w in zip(COCO17.joints, weights, strict=True) if w != 1} == {
        "left_elbow": 1.2,
        "right_elbow": 1.2,
        "left_wrist": 1.5,
    }


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kernels": [15, 11], "sigmas": [2.0]}, "kernels or sigmas"),
        ({"kernels": [5, 7, 9]}, "coarse to fine"),
        ({"sigmas": [1.0, 2.0]}, "coarse to fine"),
        ({"sigmas": [0.0]}, "greater than 0"),
        ({"level_weights": []}, "at least 1"),
        ({"level_weights": [1, 0]}, "must have a weight"),
        ({"stage_weights": [-1, 1]}, "greater than or equal to 0"),
        ({"hard_joints": 0}, "greater than or equal to 1"),
        ({"hard_samples": [1.2]}, "less than or equal to 1"),
        ({"joint_weights": {"elbow": float("nan")}}, "joint_weights"),
        ({"ohkm": 8}, "ohkm"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Supervision.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "units", "complaint"),
    [
        ({"kernels": (9, 7)}, _stage(0, 1), r"2 widths \[9, 7\] for 4 levels"),
        ({"hard_samples": (0.8, 0.6)}, [Unit(0, 2), Unit(1, 2)], "only 1 stages"),
        ({"joint_weights": {"elbow": 1.2, "nose": 2.0}}, [Unit(0, 1)], "aic14 has no joint 'nose'"),
    ],
)
def test_what_does_not_fit_the_network_is_said_before_the_first_step(
    fields: dict[str, Any], units: list[Unit], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Supervision(**fields).check(units, AIC14)


def test_a_papers_whole_section_fits() -> None:
    mspn = {"kernels": [15, 11, 9, 7, 5], "level_weights": [0.25, 0.25, 0.25, 1], "hard_joints": 8}
    Supervision.model_validate(mspn).check(_stage(0, 2) + _stage(1, 2), COCO17)
    Supervision().check([Unit(0, 1)], COCO17)
