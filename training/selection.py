"""Which annotated people a pose network is trained on.

Data selection (Team OKS 2017, slides "Data Selection"): COCO has boxes whose joints lie in one corner, often because
they are another person's. The similarity of box centre and joint centre, ``exp(-d^2 / (2 * area))``, is put against
the number of labelled joints, and only what lies right of the line (0.45, 1)-(0.65, 17) is kept.

The formula on the slide cuts almost nobody: the centre of joints inside a box of aspect 1:1 is at most 0.71 sides
away, which is a similarity of 0.78. The public code of HRNet has the same line with ``d`` measured in 0.2 of the
crop's size, which does cut. Both are here by name; ``python -m training select-data`` counts what each would drop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from service.crops import PADDING
from service.skeletons import SKELETONS
from training.datasets.coco import CocoSet, DatasetError, PersonRecord
from training.recipe import DataSource

Rule = Literal["slides", "hrnet"]

# The line: similarity 0.45 for one labelled joint, 0.65 for seventeen.
_FEWEST, _MOST = (0.45, 1), (0.65, 17)
# Width over height of the crops whose area HRNet's code takes (256x192).
_ASPECT = 192 / 256


def centre_similarity(person: PersonRecord, rule: Rule) -> float:
    """Similarity of box centre and mean labelled joint, 0..1; 0 for a person without joints.

    ``slides``: distances relative to the box area. ``hrnet``: relative to 0.2^2 of the padded crop's area.
    """
    labelled = person.keypoints[person.keypoints[:, 2] > 0, :2]
    if not len(labelled):
        return 0.0
    # Boxes are in edge coordinates, joints are points: half a pixel apart (service.crops).
    centre = (person.box[:2] + person.box[2:]) / 2 - 0.5
    squared = float(((labelled.mean(0) - centre) ** 2).sum())
    width, height = np.maximum(person.box[2:] - person.box[:2], 1e-6)
    area = float(width * height)
    if rule == "hrnet":
        width, height = max(width, _ASPECT * height), max(height, width / _ASPECT)
        area = 0.2**2 * float(width * height) * PADDING**2
    return float(np.exp(-squared / (2 * area)))


def least_similarity(labelled: int) -> float:
    """The line at a number of labelled joints: at or below it a person is left out."""
    (low, few), (high, many) = _FEWEST, _MOST
    return low + (high - low) * (labelled - few) / (many - few)


def is_selected(person: PersonRecord, rule: Rule) -> bool:
    """Whether a person lies right of the line."""
    return centre_similarity(person, rule) > least_similarity(person.labelled)


@dataclass(frozen=True)
class PeopleChoice:
    """What a recipe says about the people of one set: rule, annotation ids to keep, joints to train on."""

    rule: Rule | None = None
    keep: frozenset[int] | None = None
    joints: frozenset[str] | None = None

    def takes(self, person: PersonRecord) -> bool:
        """Whether to train on this person."""
        if self.keep is not None and person.id not in self.keep:
            return False
        return self.rule is None or is_selected(person, self.rule)

    def mask(self, joints: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of ``joints`` are trained on, bool [K]."""
        return np.array([self.joints is None or joint in self.joints for joint in joints])


def people_choice(data: CocoSet) -> PeopleChoice:
    """The choice that a set's source asks for. Raises DatasetError for a bad list of ids or an unknown joint."""
    source = data.source
    if source is None:
        return PeopleChoice()
    return PeopleChoice(source.select, _read_keep(data, source), _common_joints(data, source))


def _common_joints(data: CocoSet, source: DataSource) -> frozenset[str] | None:
    own = frozenset(data.skeleton.joints)
    unknown = [joint for joint in source.only_joints if joint not in own]
    if unknown:
        raise DatasetError(f"{source.annotations}: only_joints names {unknown}, its joints are {sorted(own)}")
    if not source.only_joints and source.common_with is None:
        return None
    chosen = frozenset(source.only_joints) if source.only_joints else own
    return chosen if source.common_with is None else chosen & frozenset(SKELETONS[source.common_with].joints)


def _read_keep(data: CocoSet, source: DataSource) -> frozenset[int] | None:
    if source.keep is None:
        return None
    try:
        listed = json.loads(source.keep.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"{source.keep}: not a list of annotation ids: {error}") from error
    if not isinstance(listed, list) or any(type(number) is not int for number in listed):
        raise DatasetError(f"{source.keep}: a JSON list of annotation ids is expected")
    missing = frozenset(listed) - {person.id for image in data.images for person in image.people}
    if missing:
        raise DatasetError(f"{source.keep}: {source.annotations} has no annotation {sorted(missing)[:5]}")
    return frozenset(listed)
