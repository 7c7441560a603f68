"""Skeletons join data sets and models by joint name; a wrong index swaps somebody's knees."""

from __future__ import annotations

import json

import pytest
from pycocotools.cocoeval import Params

from service.skeletons import COCO17, LSP14, SKELETONS, UNION19, Skeleton, make_skeleton, mirrored_name


def test_coco_sigmas_are_pycocotools() -> None:
    assert list(COCO17.sigmas) == pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist())


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())
def test_every_preset_is_whole(skeleton: Skeleton) -> None:
    assert len(skeleton) == len(skeleton.joints) == len(skeleton.sigmas)
    permutation = skeleton.flip_permutation
    assert [permutation[k] for k in permutation] == list(range(len(skeleton))), "mirroring twice is nothing"
    for k, partner in enumerate(permutation):
        assert mirrored_name(skeleton.joints[k]) == skeleton.joints[partner]
        assert skeleton.sigmas[k] == skeleton.sigmas[partner]
    assert Skeleton.from_json(skeleton.to_json()) == skeleton
    touched = {k for edge in skeleton.edges for k in edge}
    assert touched == set(range(len(skeleton))), "a joint that no limb reaches is never seen in a drawing"


def test_names_join_data_sets() -> None:
    indices = LSP14.indices_in(UNION19)
    assert all(UNION19.joints[i] == joint for i, joint in zip(indices, LSP14.joints, strict=True))
    missing = LSP14.indices_in(COCO17)
    assert [joint for joint, i in zip(LSP14.joints, missing, strict=True) if i < 0] == ["neck", "head_top"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}",
        '{"name":"x","joints":["a"],"edges":[],"sigmas":[]}',
        '{"name":"x","joints":["a"],"edges":[[0,1]],"sigmas":[1]}',
        '{"name":"x","joints":["a","a"],"edges":[],"sigmas":[1,1]}',
        '{"name":"x","joints":[],"edges":[],"sigmas":[]}',
        '{"name":"x","joints":["a"],"edges":[],"sigmas":[-1]}',
    ],
)  # fmt: skip
def test_a_broken_skeleton_in_a_config_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="skeleton"):
        Skeleton.from_json(text)


def test_json_is_plain() -> None:
    assert json.loads(COCO17.to_json())["joints"][0] == "nose"


def test_edges_between_missing_joints_are_left_out() -> None:
    assert make_skeleton("two", ["nose", "neck"], [("nose", "neck"), ("neck", "head_top")]).edges == ((0, 1),)
