"""Is an answer the one that was expected, and does it hold the people that are in the picture?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.oks import pairwise_oks
from service.scenes import Scene

#: An answer under load may differ from the one given alone by this much: batches round otherwise than single rows.
MAX_PIXELS = 0.5
MAX_SCORE = 0.01
# A drawn person counts for recall when half of it, and eight joints, can be seen.
_LEAST_VISIBLE, _LEAST_JOINTS = 0.5, 8
_FOUND_OKS = 0.5


def disagreement(expected: Any, answer: Any) -> str | None:
    """What differs between two answers of ``/v1/pose`` to the same request; None when they agree.

    Both are COCO documents or both results lists. People are compared in their order; two whose scores are within
    the tolerance may have changed places.
    """
    if type(expected) is not type(answer):
        return f"expected a {type(expected).__name__}, got a {type(answer).__name__}"
    wanted, given = _people(expected), _people(answer)
    if len(wanted) != len(given):
        return f"expected {len(wanted)} people, got {len(given)}"
    if isinstance(expected, Mapping) and expected["images"] != answer["images"]:
        return f"expected images {expected['images']}, got {answer['images']}"
    left = list(range(len(given)))
    reasons: list[str] = []
    for person in wanted:
        tried = [(_difference(person, given[index]), index) for index in left]
        same = next((index for reason, index in tried if reason is None), None)
        if same is None:
            reasons.append(tried[0][0] or "")
        else:
            left.remove(same)
    return "; ".join(reasons[:3]) or None


def _people(answer: Any) -> Sequence[Mapping[str, Any]]:
    people: Sequence[Mapping[str, Any]] = answer["annotations"] if isinstance(answer, Mapping) else answer
    return people


def _difference(expected: Mapping[str, Any], person: Mapping[str, Any]) -> str | None:
    if expected["image_id"] != person["image_id"]:
        return f"image_id {person['image_id']} instead of {expected['image_id']}"
    if len(expected["keypoints"]) != len(person["keypoints"]):
        return f"{len(person['keypoints']) // 3} joints instead of {len(expected['keypoints']) // 3}"
    wanted, given = (_joints(p) for p in (expected, person))
    if not np.isfinite(given).all():
        return "numbers that are not finite"
    apart = float(np.abs(wanted[:, :2] - given[:, :2]).max())
    if apart > MAX_PIXELS:
        return f"a joint {apart:.2f} px away"
    score = max(abs(expected["score"] - person["score"]), float(np.abs(_scores(expected) - _scores(person)).max()))
    if score > MAX_SCORE:
        return f"a score {score:.3f} away"
    return None


def _joints(person: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    return np.array(person["keypoints"], np.float64).reshape(-1, 3)


def _scores(person: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = np.array(person.get("keypoint_scores", _joints(person)[:, 2]), np.float64)
    return scores


@dataclass(frozen=True)
class Recall:
    """Of drawn people that can be seen well: how many there are, and how many were found (OKS of 0.5 or more)."""

    known: int = 0
    found: int = 0

    def __add__(self, other: Recall) -> Recall:
        """Both together."""
        return Recall(self.known + other.known, self.found + other.found)

    def __str__(self) -> str:
        """``17 of 20 people (85 %)``."""
        share = f" ({self.found / self.known:.0%})" if self.known else ""
        return f"{self.found} of {self.known} people{share}"


def recall(scene: Scene, answer: Mapping[str, Any]) -> Recall:
    """Look for a scene's people in a COCO document. Joints are joined by name; only visible ones count."""
    names: list[str] = answer["categories"][0]["keypoints"]
    shared = [joint for joint in scene.skeleton.joints if joint in names]
    drawn = [scene.skeleton.joints.index(joint) for joint in shared]
    answered = [names.index(joint) for joint in shared]
    sigmas = [scene.skeleton.sigmas[k] for k in drawn]
    people = [
        person
        for person in scene.people
        if person.visible >= _LEAST_VISIBLE and (person.keypoints[drawn, 2] == 2).sum() >= _LEAST_JOINTS
    ]
    if not people or not answer["annotations"]:
        return Recall(len(people), 0)
    truth = np.stack([person.keypoints[drawn] for person in people])
    given = np.stack([_joints(person)[answered, :2] for person in answer["annotations"]])
    areas = np.array([person.area for person in people])[:, None]
    similar = pairwise_oks(truth[..., :2], given, areas, sigmas, truth[..., 2] == 2)
    return Recall(len(people), int((similar.max(1) >= _FOUND_OKS).sum()))
