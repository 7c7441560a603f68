"""Skeletons: the names, edges and OKS constants of the joint sets the field uses.

Data sets and models are joined by joint *name*, never by index: COCO-17, LSP-14, AI Challenger-14,
CrowdPose-14 and MPII-16 order the same joints differently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

# Per-joint OKS constants of COCO (cocoapi) for its 17 joints; CrowdPose's 0.079 for head top and neck.
# mmpose's MPII values for pelvis (a hip) and thorax (a shoulder).
_SIGMA = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
    "head_top": 0.079,
    "neck": 0.079,
    "pelvis": 0.107,
    "thorax": 0.079,
}


@dataclass(frozen=True)
class Skeleton:
    """An ordered set of joints.

    Attributes:
        name: preset name, e.g. ``coco17``.
        joints: K joint names; left/right partners are ``left_x`` / ``right_x``.
        edges: pairs of 0-based joint indices to draw (COCO's JSON is 1-based, this is not).
        sigmas: K OKS standard deviations, relative to the square root of the person's area.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.joints:
            raise ValueError(f"skeleton {self.name!r} has no joints")
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f"skeleton {self.name!r} names a joint twice: {list(self.joints)}")
        if len(self.sigmas) != len(self.joints) or any(not s > 0 for s in self.sigmas):
            raise ValueError(
                f"skeleton {self.name!r}: {len(self.joints)} joints need as many positive sigmas, "
                f"got {list(self.sigmas)}"
            )
        for a, b in self.edges:
            if not (0 <= a < len(self.joints) and 0 <= b < len(self.joints)):
                raise ValueError(f"skeleton {self.name!r}: edge {(a, b)} leaves 0..{len(self.joints) - 1}")

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """``p`` with ``mirrored_joints[k] = joints[p[k]]``: each joint's left/right partner, itself if none."""
        index = {joint: k for k, joint in enumerate(self.joints)}
        return tuple(index.get(mirrored_name(joint), k) for k, joint in enumerate(self.joints))

    def indices_in(self, other: Skeleton) -> tuple[int, ...]:
        """Position of each of this skeleton's joints in ``other``; -1 where ``other`` lacks it."""
        index = {joint: k for k, joint in enumerate(other.joints)}
        return tuple(index.get(joint, -1) for joint in self.joints)

    def to_json(self) -> str:
        """One line of JSON, as stored in a model's ``parameters``."""
        return json.dumps(
            {"name": self.name, "joints": self.joints, "edges": self.edges, "sigmas": self.sigmas},
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Skeleton:
        """Inverse of :meth:`to_json`. Raises ValueError naming what is wrong."""
        try:
            raw = json.loads(text)
            return cls(
                name=str(raw["name"]),
                joints=tuple(str(j) for j in raw["joints"]),
                edges=tuple((int(a), int(b)) for a, b in raw["edges"]),
                sigmas=tuple(float(s) for s in raw["sigmas"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a skeleton: {error!r} in {text[:200]!r}") from error


def mirrored_name(joint: str) -> str:
    """``left_knee`` <-> ``right_knee``; names without a side map to themselves."""
    if joint.startswith("left_"):
        return "right_" + joint[5:]
    if joint.startswith("right_"):
        return "left_" + joint[6:]
    return joint


def _sigma(joint: str) -> float:
    return _SIGMA[joint.removeprefix("left_").removeprefix("right_")]


def make_skeleton(name: str, joints: Sequence[str], edges: Sequence[tuple[str, str]]) -> Skeleton:
    """Build a skeleton from joint names, with COCO's sigmas; edges between names it lacks are left out."""
    index = {joint: k for k, joint in enumerate(joints)}
    kept = tuple((index[a], index[b]) for a, b in edges if a in index and b in index)
    return Skeleton(name, tuple(joints), kept, tuple(_sigma(j) for j in joints))


_LIMBS = (
    ("left_ankle", "left_knee"),
    ("left_knee", "left_hip"),
    ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
)
_TORSO = (
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"),
)
_FACE = (
    ("left_eye", "right_eye"),
    ("nose", "left_eye"),
    ("nose", "right_eye"),
    ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
    ("left_ear", "left_shoulder"),
    ("right_ear", "right_shoulder"),
)
_NECK = (("head_top", "neck"), ("neck", "left_shoulder"), ("neck", "right_shoulder"))

_COCO_JOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()

COCO17 = make_skeleton("coco17", _COCO_JOINTS, _LIMBS + _TORSO + _FACE)
LSP14 = make_skeleton(
    "lsp14",
    (
        "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow "
        "right_shoulder left_shoulder left_elbow left_wrist neck head_top"
    ).split(),
    _LIMBS + _TORSO[:3] + _NECK,
)
AIC14 = make_skeleton(
    "aic14",
    (
        "right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
        "right_ankle left_hip left_knee left_ankle head_top neck"
    ).split(),
    _LIMBS + _TORSO[:3] + _NECK,
)
CROWDPOSE14 = make_skeleton(
    "crowdpose14",
    (
        "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip "
        "left_knee right_knee left_ankle right_ankle head_top neck"
    ).split(),
    _LIMBS + _TORSO + _NECK,
)
MPII16 = make_skeleton(
    "mpii16",
    (
        "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax neck head_top "
        "right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist"
    ).split(),
    (
        *_LIMBS,
        ("right_hip", "pelvis"),
        ("pelvis", "left_hip"),
        ("pelvis", "thorax"),
        ("thorax", "neck"),
        ("neck", "head_top"),
        ("thorax", "left_shoulder"),
        ("thorax", "right_shoulder"),
    ),
)
# The union a pose network is trained on: COCO's joints, and the two that LSP and AI Challenger add.
UNION19 = make_skeleton("union19", [*_COCO_JOINTS, "head_top", "neck"], _LIMBS + _TORSO + _FACE + _NECK)

SKELETONS = {s.name: s for s in (COCO17, LSP14, AIC14, CROWDPOSE14, MPII16, UNION19)}
