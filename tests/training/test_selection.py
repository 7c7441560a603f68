"""If these fail, data selection leaves in the people whose joints are another's, or throws good ones out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.skeletons import AIC14, COCO17, UNION19
from training.datasets import read_set
from training.datasets.coco import CocoSet, DatasetError, ImageRecord, PersonRecord
from training.datasets.union import pose_samples, sample_repeats
from training.draws import SampleStream
from training.recipe import DataSource
from training.selection import centre_similarity, is_selected, least_similarity


def _person(
    number: int, box: tuple[float, ...], at: tuple[float, float], labelled: int, joints: int = 17
) -> PersonRecord:
    keypoints = np.zeros((joints, 3))
    keypoints[:labelled] = [*at, 2]
    return PersonRecord(number, np.array(box, np.float64), keypoints, 100.0, False, ())


def _set(name: str, people: list[PersonRecord], source: DataSource, skeleton=COCO17) -> CocoSet:  # type: ignore[no-untyped-def]
    images = (ImageRecord(1, Path("1.jpg"), 100, 100, True, tuple(people)),)
    return CocoSet(name, skeleton, images, source.repeat, source)


def test_the_line_goes_through_the_slides_two_points() -> None:
    assert least_similarity(1) == pytest.approx(0.45)
    assert least_similarity(17) == pytest.approx(0.65)
    assert least_similarity(9) == pytest.approx(0.55)


def test_the_slides_similarity_is_relative_to_the_box() -> None:
    # A box of 100 x 40 around (49.5, 19.5), all joints 30 to the right and 10 down: exp(-1000 / 8000).
    person = _person(1, (0, 0, 100, 40), (79.5, 29.5), 5)
    assert centre_similarity(person, "slides") == pytest.approx(np.exp(-1000 / 8000))
    assert is_selected(person, "slides")


def test_hrnets_similarity_is_relative_to_a_fifth_of_the_crop() -> None:
    # 100 x 40 becomes a crop of 100 x 133.3, times 1.25 each way.
    person = _person(1, (0, 0, 100, 40), (79.5, 29.5), 5)
    area = 100 * (100 / 0.75) * 1.25**2
    assert centre_similarity(person, "hrnet") == pytest.approx(np.exp(-1000 / (2 * 0.04 * area)))


def test_who_lies_left_of_the_line_is_left_out() -> None:
    # With hrnet's rule on a crop of 75 x 100: distance d gives exp(-d^2 / (0.08 * 11718.75)) = exp(-d^2 / 937.5).
    box = (0.0, 0.0, 75.0, 100.0)
    distance = float(np.sqrt(-937.5 * np.log(0.55)))  # the line for nine joints
    for farther, selected in ((0.99, True), (1.01, False)):
        assert is_selected(_person(1, box, (37.0, 49.5 + farther * distance), 9), "hrnet") is selected
        # The same place is too far off for more joints, and near enough for fewer.
    assert not is_selected(_person(1, box, (37.0, 49.5 + 0.99 * distance), 13), "hrnet")
    assert is_selected(_person(1, box, (37.0, 49.5 + 1.01 * distance), 5), "hrnet")


def test_the_recipes_switch_changes_who_is_trained_on() -> None:
    people = [_person(1, (0, 0, 75, 100), (37, 50), 9), _person(2, (0, 0, 75, 100), (37, 95), 9)]
    source = DataSource(annotations=Path("a.json"), images=Path("a"))
    chosen = {}
    for rule in (None, "slides", "hrnet"):
        data = _set("a", people, source.model_copy(update={"select": rule}))
        chosen[rule] = [s.id for s in pose_samples([data], COCO17, min_joints=3, holdout=0)[0]]
    assert chosen == {None: [1, 2], "slides": [1, 2], "hrnet": [1]}


def test_only_listed_people_are_trained_on(tmp_path: Path) -> None:
    people = [_person(n, (0, 0, 75, 100), (37, 50), 9) for n in (1, 2, 3)]
    keep = tmp_path / "keep.json"
    source = DataSource(annotations=Path("a.json"), images=Path("a"), keep=keep)
    keep.write_text("[3, 1]")
    assert [s.id for s in pose_samples([_set("a", people, source)], COCO17, min_joints=3, holdout=0)[0]] == [1, 3]
    for text, message in (("[9]", r"no annotation \[9\]"), ("{", "not a list"), ('["1"]', "list of annotation ids")):
        keep.write_text(text)
        with pytest.raises(DatasetError, match=message):
            pose_samples([_set("a", people, source)], COCO17, min_joints=3, holdout=0)


def test_joints_that_coco_lacks_give_no_label() -> None:
    person = _person(1, (0, 0, 75, 100), (37, 50), 14, joints=14)
    source = DataSource(annotations=Path("a.json"), images=Path("a"), common_with="coco17")
    for chosen, count in ((source.model_copy(update={"common_with": None}), 14), (source, 12)):
        (sample,), _, _ = pose_samples([_set("a", [person], chosen, AIC14)], UNION19, min_joints=3, holdout=0)
        labelled = {joint for joint, v in zip(UNION19.joints, sample.keypoints[:, 2], strict=True) if v > 0}
        assert len(labelled) == count
        assert ("neck" in labelled) == (count == 14)
    only = source.model_copy(update={"common_with": None, "only_joints": ("neck", "left_knee")})
    (sample,), _, _ = pose_samples([_set("a", [person], only, AIC14)], UNION19, min_joints=1, holdout=0)
    assert {UNION19.joints[k] for k in np.flatnonzero(sample.keypoints[:, 2])} == {"neck", "left_knee"}
    wrong = source.model_copy(update={"only_joints": ("nose",)})
    with pytest.raises(DatasetError, match="nose"):
        pose_samples([_set("a", [person], wrong, AIC14)], UNION19, min_joints=1, holdout=0)


def test_boxes_known_to_hold_nobody_become_empty_samples_of_any_min_joints() -> None:
    source = DataSource(annotations=Path("a.json"), images=Path("a"), weight=0.5)
    data = _set("a", [_person(1, (0, 0, 75, 100), (37, 50), 9)], source)
    boxes = (np.array([10.0, 10, 20, 40]),)
    data = replace(data, images=(replace(data.images[0], negatives=boxes),))
    person, nobody = pose_samples([data], COCO17, min_joints=9, holdout=0)[0]
    assert (person.empty, nobody.empty) == (False, True)
    assert nobody.box.tolist() == [10, 10, 20, 40]
    assert not nobody.keypoints.any()
    assert person.weight == nobody.weight == 0.5


def _counted(share: float | None, repeat: float = 1.0) -> CocoSet:
    source = DataSource(annotations=Path("a.json"), images=Path("a"), share=share, repeat=repeat)
    return _set(f"share {share}", [], source)


def test_shares_are_parts_of_all_draws_and_the_rest_goes_by_repeat() -> None:
    sets = [_counted(None, 3.0), _counted(0.2), _counted(None), _counted(0.3)]
    counts = [100, 7, 200, 5000]
    drawn = np.multiply(sample_repeats(sets, counts), counts)
    assert (drawn / drawn.sum()).tolist() == pytest.approx([0.5 * 300 / 500, 0.2, 0.5 * 200 / 500, 0.3])
    # Without shares nothing changes.
    assert sample_repeats([sets[0], sets[2]], [100, 200]) == [3.0, 1.0]


def test_rendered_scenes_are_the_part_of_all_draws_that_a_recipe_asks_for(rendered_data: Path) -> None:
    scenes = DataSource(annotations=rendered_data / "annotations.json", images=rendered_data / "images", share=0.2)
    people = [_person(n, (0, 0, 75, 100), (37, 50), 9) for n in range(1, 201)]
    photographs = _set("photographs", people, scenes.model_copy(update={"share": None, "repeat": 3.0}))
    for share, expected in ((0.2, 0.2), (0.05, 0.05), (None, 16 / (16 + 600))):
        rendered = read_set(scenes.model_copy(update={"share": share}))
        samples, repeats, _ = pose_samples([photographs, rendered], UNION19, min_joints=3, holdout=0)
        drawn = SampleStream(repeats, seed=0).take(0, 40_000)
        part = np.mean([samples[k].dataset == rendered.name for k in drawn])
        # Six standard deviations of 40,000 draws.
        assert part == pytest.approx(expected, abs=6 * (expected * (1 - expected) / 40_000) ** 0.5)


@pytest.mark.parametrize(
    ("shares", "counts", "message"),
    [
        ((0.7, 0.4), (1, 1), "exceed 1"),
        ((1.0, None), (1, 1), "nothing for the other"),
        ((0.5, 0.2), (1, 1), "add up to 0.7"),
        ((0.5, None), (0, 1), "nobody to train on"),
    ],
)
def test_shares_that_cannot_be_met_are_named(
    shares: tuple[float | None, ...], counts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        sample_repeats([_counted(share) for share in shares], counts)


def test_hard_negatives_are_read_apart_from_people(tmp_path: Path) -> None:
    from training.datasets.coco import read_coco

    path = tmp_path / "a.json"
    annotation = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "keypoints": [5, 5, 2] * 17}
    path.write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "person", "keypoints": COCO17.joints, "skeleton": []}],
        "annotations": [{**annotation, "id": 1},
                        {**annotation, "id": 2, "keypoints": [], "num_keypoints": 0, "hard_negative": True}],
    }))  # fmt: skip
    (image,) = read_coco(DataSource(annotations=path, images=tmp_path)).images
    assert [person.id for person in image.people] == [1]
    assert [box.tolist() for box in image.negatives] == [[1, 2, 31, 42]]
