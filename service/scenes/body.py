"""A jointed body in three dimensions: bone lengths, joint-angle limits and forward kinematics.

Frame: x to the image's right, y up, z towards the viewer; lengths in statures (a standing adult is 1). A body
that faces the viewer therefore has its left side at positive x. Projection is orthographic: drop z.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Rotation = npt.NDArray[np.float64]

SIDES = (("left", 1.0), ("right", -1.0))

# Degrees; what a limber adult reaches. Flexion is forwards, abduction away from the body's middle.
JOINT_LIMITS: Mapping[str, tuple[float, float]] = {
    "spine_flexion": (-25, 95),
    "spine_lateral": (-30, 30),
    "spine_twist": (-35, 35),
    "head_flexion": (-35, 40),
    "head_lateral": (-25, 25),
    "head_turn": (-65, 65),
    "shoulder_flexion": (-50, 180),
    "shoulder_abduction": (-15, 175),
    "shoulder_twist": (-60, 80),
    "elbow_flexion": (0, 148),
    "hip_flexion": (-25, 125),
    "hip_abduction": (-15, 60),
    "hip_twist": (-25, 45),
    "knee_flexion": (0, 145),
    "ankle_flexion": (-20, 45),
}
_PAIRED = ("shoulder", "elbow", "hip", "knee", "ankle")


def angle_names() -> tuple[str, ...]:
    """Every angle a pose may set: those of paired joints once for each side (``left_knee_flexion``)."""
    names: list[str] = []
    for name in JOINT_LIMITS:
        paired = name.split("_", 1)[0] in _PAIRED
        names += [f"left_{name}", f"right_{name}"] if paired else [name]
    return tuple(names)


def angle_limits(name: str) -> tuple[float, float]:
    """Lowest and highest degrees of one of :func:`angle_names`. Raises KeyError for other names."""
    return JOINT_LIMITS[name.removeprefix("left_").removeprefix("right_")]


@dataclass(frozen=True)
class Build:
    """Lengths in statures, for one person. The defaults are an average adult (Drillis and Contini 1966)."""

    shank: float = 0.245
    thigh: float = 0.245
    trunk: float = 0.295
    neck: float = 0.035
    head: float = 0.066
    upper_arm: float = 0.165
    forearm: float = 0.148
    hand: float = 0.075
    foot: float = 0.105
    hip_width: float = 0.056
    shoulder_width: float = 0.108
    girth: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Build:
        """Draw a build: adults of varied shape, one in seven a child (big head, short limbs)."""
        child = rng.random() < 0.15
        leg = rng.uniform(0.94, 1.06) * (0.88 if child else 1.0)
        arm = rng.uniform(0.95, 1.06) * (0.9 if child else 1.0)
        return cls(
            shank=0.245 * leg,
            thigh=0.245 * leg,
            trunk=0.295 * rng.uniform(0.95, 1.06),
            head=0.066 * rng.uniform(0.95, 1.08) * (1.35 if child else 1.0),
            upper_arm=0.165 * arm,
            forearm=0.148 * arm,
            hand=0.075 * arm,
            foot=0.105 * rng.uniform(0.9, 1.1),
            hip_width=0.056 * rng.uniform(0.9, 1.2),
            shoulder_width=0.108 * rng.uniform(0.88, 1.12),
            girth=float(np.clip(rng.normal(1.05, 0.16), 0.8, 1.55)),
        )


@dataclass(frozen=True)
class Body:
    """A posed body: 3-D points by name and the orientation of each segment (columns: left, up, forward)."""

    build: Build
    points: Mapping[str, Vector]
    frames: Mapping[str, Rotation]


def turn(axis: str, degrees: float) -> Rotation:
    """Rotation about ``x``, ``y`` or ``z`` by the right-hand rule, [3, 3]."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def pose_body(build: Build, angles: Mapping[str, float], orientation: Rotation) -> Body:
    """Forward kinematics from the hips outwards.

    Args:
        build: bone lengths.
        angles: degrees by :func:`angle_names`; missing ones are 0, all are clipped to JOINT_LIMITS.
        orientation: [3, 3], body axes (left, up, forward) to the world's.

    Returns:
        the body with the middle of its hips at the origin. ``points`` holds every joint of UNION19 plus
        hands, toes, heels, waist and head centre.
    """
    known = set(angle_names())
    if unknown := set(angles) - known:
        raise ValueError(f"no such joint angles: {sorted(unknown)}")

    def angle(name: str) -> float:
        low, high = angle_limits(name)
        return float(np.clip(angles.get(name, 0.0), low, high))

    def spine(share: float) -> Rotation:
        bend = turn("y", share * angle("spine_twist")) @ turn("z", share * angle("spine_lateral"))
        return bend @ turn("x", share * angle("spine_flexion"))

    points: dict[str, Vector] = {"pelvis": np.zeros(3)}
    frames: dict[str, Rotation] = {"pelvis": orientation}
    abdomen, chest = orientation @ spine(0.4), orientation @ spine(1.0)
    frames["abdomen"], frames["chest"] = abdomen, chest
    points["waist"] = abdomen @ np.array([0, 0.42 * build.trunk, 0])
    points["neck"] = points["waist"] + chest @ np.array([0, 0.58 * build.trunk, 0])

    half_nod = turn("x", angle("head_flexion") / 2)
    nape = points["neck"] + chest @ half_nod @ np.array([0, build.neck, 0.004])
    head = chest @ turn("y", angle("head_turn")) @ turn("z", angle("head_lateral")) @ turn("x", angle("head_flexion"))
    frames["head"] = head
    points["nape"] = nape
    points["head"] = nape + head @ np.array([0, 0.97 * build.head, 0.012])
    for name, local in head_landmarks(build).items():
        points[name] = points["head"] + head @ local

    for side, sign in SIDES:
        shrug = 0.1 * max(0.0, angle(f"{side}_shoulder_abduction") - 60) / 120 * build.upper_arm
        shoulder = points["neck"] + chest @ np.array([sign * build.shoulder_width, -0.02 + 2 * shrug, 0])
        arm = chest @ turn("z", sign * angle(f"{side}_shoulder_abduction"))
        arm = arm @ turn("x", -angle(f"{side}_shoulder_flexion")) @ turn("y", -sign * angle(f"{side}_shoulder_twist"))
        forearm = arm @ turn("x", -angle(f"{side}_elbow_flexion"))
        elbow = shoulder + arm @ np.array([0, -build.upper_arm, 0])
        wrist = elbow + forearm @ np.array([0, -build.forearm, 0])
        points |= {f"{side}_shoulder": shoulder, f"{side}_elbow": elbow, f"{side}_wrist": wrist}
        points[f"{side}_hand"] = wrist + forearm @ np.array([0, -build.hand, 0])
        frames |= {f"{side}_arm": arm, f"{side}_forearm": forearm}

        hip = orientation @ np.array([sign * build.hip_width, 0, 0])
        thigh = orientation @ turn("z", sign * angle(f"{side}_hip_abduction"))
        thigh = thigh @ turn("x", -angle(f"{side}_hip_flexion")) @ turn("y", sign * angle(f"{side}_hip_twist"))
        shank = thigh @ turn("x", angle(f"{side}_knee_flexion"))
        foot = shank @ turn("x", angle(f"{side}_ankle_flexion"))
        knee = hip + thigh @ np.array([0, -build.thigh, 0])
        ankle = knee + shank @ np.array([0, -build.shank, 0])
        points |= {f"{side}_hip": hip, f"{side}_knee": knee, f"{side}_ankle": ankle}
        points[f"{side}_heel"] = ankle + foot @ np.array([0, -0.028, -0.022])
        points[f"{side}_toe"] = ankle + foot @ np.array([0, -0.032, build.foot])
        frames |= {f"{side}_thigh": thigh, f"{side}_shank": shank, f"{side}_foot": foot}
    return Body(build, points, frames)


def head_axes(build: Build) -> Vector:
    """Semi-axes of the head's ellipsoid: half width, half height, half depth."""
    return build.head * np.array([0.72, 1.0, 0.85])


def head_landmarks(build: Build) -> dict[str, Vector]:
    """Eyes, ears, nose and top in the head's frame, from its centre. The painted face uses the same places."""
    axes = head_axes(build)
    places = {"nose": (0.0, -0.12, 1.12), "head_top": (0.0, 1.0, 0.0)}
    for side, sign in SIDES:
        places[f"{side}_eye"] = (sign * EYE[0], EYE[1], float(np.sqrt(1 - EYE[0] ** 2 - EYE[1] ** 2)))
        places[f"{side}_ear"] = (sign * 1.03, -0.02, -0.1)
    return {name: axes * np.array(place) for name, place in places.items()}


# Place of an eye on the head's unit sphere: left (or right), up.
EYE = (0.4, 0.13)
