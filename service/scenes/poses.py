"""What people do: ranges of joint angles for standing, walking, sitting and so on, and how they turn.

An angle is drawn evenly from its range. A name without a side is drawn once for each side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.scenes.body import Rotation, angle_names, turn

Ranges = Mapping[str, tuple[float, float]]

_RELAXED: Ranges = {
    "spine_flexion": (-4, 8),
    "spine_lateral": (-5, 5),
    "spine_twist": (-8, 8),
    "head_flexion": (-10, 15),
    "head_lateral": (-8, 8),
    "head_turn": (-35, 35),
    "shoulder_flexion": (-12, 18),
    "shoulder_abduction": (4, 16),
    "shoulder_twist": (-10, 30),
    "elbow_flexion": (3, 35),
    "hip_flexion": (-4, 6),
    "hip_abduction": (0, 10),
    "hip_twist": (-3, 15),
    "knee_flexion": (0, 8),
    "ankle_flexion": (-5, 5),
}

POSES: Mapping[str, Ranges] = {
    "standing": {},
    "arms_crossed": {
        "shoulder_flexion": (15, 35),
        "shoulder_abduction": (2, 10),
        "shoulder_twist": (55, 75),
        "elbow_flexion": (95, 118),
    },
    "hands_on_hips": {
        "shoulder_flexion": (-25, -5),
        "shoulder_abduction": (35, 52),
        "shoulder_twist": (30, 60),
        "elbow_flexion": (85, 110),
    },
    "pointing": {"left_shoulder_flexion": (55, 115), "left_shoulder_abduction": (0, 50), "left_elbow_flexion": (0, 20)},
    "telephoning": {
        "left_shoulder_flexion": (25, 60),
        "left_shoulder_abduction": (15, 45),
        "left_shoulder_twist": (0, 25),
        "left_elbow_flexion": (125, 145),
    },
    "arms_up": {"shoulder_flexion": (-10, 15), "shoulder_abduction": (115, 172), "elbow_flexion": (0, 55)},
    "arms_out": {"shoulder_flexion": (-15, 20), "shoulder_abduction": (60, 110), "elbow_flexion": (0, 90)},
    "walking": {
        "left_hip_flexion": (15, 34),
        "left_knee_flexion": (2, 18),
        "left_ankle_flexion": (-12, 0),
        "right_hip_flexion": (-22, -4),
        "right_knee_flexion": (8, 45),
        "right_ankle_flexion": (0, 25),
        "left_shoulder_flexion": (-30, -8),
        "right_shoulder_flexion": (8, 35),
        "elbow_flexion": (10, 45),
    },
    "running": {
        "spine_flexion": (5, 20),
        "left_hip_flexion": (40, 80),
        "left_knee_flexion": (50, 105),
        "right_hip_flexion": (-25, -5),
        "right_knee_flexion": (15, 90),
        "right_ankle_flexion": (10, 40),
        "left_shoulder_flexion": (-50, -15),
        "right_shoulder_flexion": (20, 60),
        "elbow_flexion": (70, 115),
    },
    "sitting": {
        "spine_flexion": (-8, 22),
        "hip_flexion": (76, 98),
        "hip_abduction": (3, 22),
        "knee_flexion": (68, 100),
        "shoulder_flexion": (15, 55),
        "elbow_flexion": (25, 85),
        "shoulder_twist": (5, 45),
    },
    "squatting": {
        "spine_flexion": (15, 45),
        "hip_flexion": (90, 122),
        "hip_abduction": (10, 35),
        "knee_flexion": (100, 138),
        "ankle_flexion": (-20, -5),
        "shoulder_flexion": (30, 90),
        "elbow_flexion": (0, 80),
    },
    "kneeling": {"hip_flexion": (-5, 15), "knee_flexion": (92, 118), "ankle_flexion": (30, 45)},
    "bending": {
        "spine_flexion": (40, 90),
        "hip_flexion": (15, 45),
        "knee_flexion": (0, 25),
        "head_flexion": (-25, 10),
        "shoulder_flexion": (50, 110),
        "elbow_flexion": (0, 40),
    },
    "lunging": {
        "left_hip_flexion": (50, 85),
        "left_knee_flexion": (55, 95),
        "right_hip_flexion": (-25, -5),
        "right_knee_flexion": (5, 50),
        "right_ankle_flexion": (10, 40),
        "shoulder_flexion": (-30, 110),
        "shoulder_abduction": (0, 80),
        "elbow_flexion": (0, 90),
    },
    "kicking": {
        "left_hip_flexion": (45, 95),
        "left_knee_flexion": (0, 45),
        "left_ankle_flexion": (10, 40),
        "shoulder_abduction": (20, 80),
        "elbow_flexion": (5, 70),
        "spine_flexion": (-20, 10),
    },
    "lying": {
        "hip_flexion": (-10, 45),
        "knee_flexion": (0, 70),
        "shoulder_abduction": (5, 120),
        "shoulder_flexion": (-20, 60),
        "elbow_flexion": (0, 110),
        "ankle_flexion": (10, 40),
    },
    "acrobatic": {
        "spine_flexion": (-20, 60),
        "spine_lateral": (-25, 25),
        "spine_twist": (-25, 25),
        "head_flexion": (-30, 30),
        "shoulder_flexion": (-40, 170),
        "shoulder_abduction": (0, 150),
        "shoulder_twist": (-40, 60),
        "elbow_flexion": (0, 120),
        "hip_flexion": (-20, 110),
        "hip_abduction": (-5, 55),
        "hip_twist": (-15, 35),
        "knee_flexion": (0, 120),
        "ankle_flexion": (0, 40),
    },
}
# How often each is drawn when the caller does not say: mostly what street and sports photographs show.
POSE_WEIGHTS: Mapping[str, float] = {
    "standing": 5,
    "walking": 4,
    "arms_crossed": 1,
    "hands_on_hips": 1,
    "pointing": 1.5,
    "telephoning": 1,
    "arms_up": 2,
    "arms_out": 1.5,
    "running": 2,
    "sitting": 3,
    "squatting": 1,
    "kneeling": 0.7,
    "bending": 1.2,
    "lunging": 1,
    "kicking": 1,
    "lying": 0.8,
    "acrobatic": 1,
}
# Poses in which the thighs' flexion tips the trunk instead of lifting the legs.
_BALANCED = ("bending",)


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees by :func:`service.scenes.body.angle_names`, and how the whole body is turned."""

    name: str
    angles: Mapping[str, float]
    orientation: Rotation


def draw_pose(rng: np.random.Generator, name: str, elevation: float = 0.0) -> Pose:
    """Draw angles for one of POSES.

    Args:
        name: key of POSES; KeyError otherwise.
        elevation: degrees by which the camera looks down.
    """
    ranges = {**_RELAXED, **POSES[name]}
    swap = rng.random() < 0.5
    angles: dict[str, float] = {}
    for full in angle_names():
        low, high = ranges.get(full, ranges.get(full.removeprefix("left_").removeprefix("right_"), (0.0, 0.0)))
        key = full
        if swap and full.startswith(("left_", "right_")):
            key = full.replace("left_", "right_") if full.startswith("left_") else full.replace("right_", "left_")
        angles[key] = float(rng.uniform(low, high))
    # Facing: half towards the viewer, a quarter away, a quarter sideways.
    base = rng.choice([0.0, 0.0, 180.0, 90.0 if rng.random() < 0.5 else -90.0])
    # Who bends or squats keeps the feet under the weight: the hips tilt by what the legs flex.
    lean = float(np.mean([angles["left_hip_flexion"], angles["right_hip_flexion"]])) if name in _BALANCED else 0.0
    heading = turn("y", base + rng.uniform(-45, 45))
    tilt, roll = 0.0, rng.normal(0, 2)
    if name == "lying":
        roll = rng.choice([-1.0, 1.0]) * rng.uniform(78, 98)
        tilt = rng.uniform(-10, 25)
    elif name == "acrobatic":
        roll = rng.uniform(-180, 180) if rng.random() < 0.4 else rng.normal(0, 25)
    orientation = turn("z", roll) @ turn("x", elevation + tilt) @ heading @ turn("x", lean)
    return Pose(name, angles, orientation)
