"""Rendered scenes. Load tests, the bench and training on drawn pictures are only as right as these joints."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.scenes import Scene, render_scene, write_coco
from service.scenes.body import Build, angle_limits, angle_names, pose_body, turn
from service.scenes.poses import POSE_WEIGHTS, POSES, draw_pose
from service.skeletons import COCO17, LSP14, UNION19, make_skeleton

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Varied scenes: crowds, occluders, cut-off people."""
    drawn = [render_scene(seed, size=(320, 240), people=(1, 5), occluders=(0, 3)) for seed in range(24)]
    return [*drawn, render_scene(99, size=(400, 300), people=14, occluders=2), render_scene(7, people=0)]


def test_a_seed_gives_the_same_picture_and_another_seed_another() -> None:
    first, again, other = render_scene((3, 1)), render_scene((3, 1)), render_scene((3, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.owner, again.owner)
    for one, two in zip(first.people, again.people, strict=True):
        assert np.array_equal(one.keypoints, two.keypoints)
    assert not np.array_equal(first.image, other.image)


def test_the_picture_is_rgb_of_the_size_asked_for() -> None:
    scene = render_scene(1, size=(200, 120), people=2)
    assert scene.image.shape == (120, 200, 3)
    assert scene.image.dtype == np.uint8
    assert scene.image.std() > 5


@pytest.mark.parametrize("count", [0, 1, 4, 9, 16])
def test_as_many_people_as_asked_for(count: int) -> None:
    for seed in range(3):
        assert len(render_scene(seed, people=count, stature=(0.2, 0.6)).people) == count


def test_boxes_areas_and_masks_agree(scenes: list[Scene]) -> None:
    for scene in scenes:
        covered = np.zeros(scene.owner.shape, int)
        for person in scene.people:
            rows, columns = np.nonzero(person.mask)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert person.box.tolist() == expected
            assert person.area == len(rows)
            assert 0 < person.visible <= 1
            covered += person.mask
        assert covered.max(initial=0) <= 1, "a pixel shows one person"


def test_visibility_follows_from_what_each_pixel_shows(scenes: list[Scene]) -> None:
    """v = 0 exactly outside; v = 1 wherever a nearer person or thing is painted; v = 2 only where none is."""
    outside = hidden = seen = 0
    for scene in scenes:
        height, width = scene.owner.shape
        for index, person in enumerate(scene.people):
            for x, y, v in person.keypoints:
                inside = -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5
                assert (v > 0) == inside
                if not inside:
                    outside += 1
                    continue
                top = scene.owner[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
                if top > index:
                    assert v == 1, "people are listed from the farthest to the nearest"
                    hidden += 1
                if v == 2:
                    assert top == -1 or top <= index
                    seen += 1
    assert min(outside, hidden, seen) > 50, "the scenes exercise all three cases"


def test_visible_joints_lie_on_their_person(scenes: list[Scene]) -> None:
    """Limb joints lie inside the silhouette; noses and ears may stand a pixel or two outside its solid part."""
    distances = []
    for scene in scenes:
        for person in scene.people:
            away = cv2.distanceTransform((~person.mask).astype(np.uint8), cv2.DIST_L2, 5)
            for x, y, v in person.keypoints:
                if v == 2:
                    distances.append(away[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))])
    assert max(distances) <= 3.0
    assert np.mean(np.array(distances) == 0) > 0.97


def test_left_and_right_are_the_persons_own() -> None:
    """Upright people whose eyes are both seen look at us: their left eye is on the right of the picture."""
    eyes = [UNION19.joints.index("left_eye"), UNION19.joints.index("right_eye")]
    shoulders = [UNION19.joints.index("left_shoulder"), UNION19.joints.index("right_shoulder")]
    facing = away = 0
    for seed in range(40):
        for person in render_scene(seed, people=2, poses=["standing"], occluders=0, size=(320, 240)).people:
            left, right = person.keypoints[eyes]
            if left[2] == right[2] == 2:
                assert left[0] > right[0]
                facing += 1
            elif left[2] == right[2] == 1 and person.visible > 0.99:
                # The back of the head: with the head turned by no more than 35 degrees, of the body as well.
                left, right = person.keypoints[shoulders]
                away += left[0] < right[0]
    assert facing > 15
    assert away > 5


def test_whole_people_have_every_joint_inside() -> None:
    for seed in range(6):
        for person in render_scene(seed, people=3, whole=True, stature=(0.3, 0.6)).people:
            assert (person.keypoints[:, 2] > 0).all()


def test_stature_sets_the_size() -> None:
    """A standing adult of 0.8 of the picture's height measures that, head to ankle about nine tenths of it."""
    top, ankles = UNION19.joints.index("head_top"), [UNION19.joints.index(f"{s}_ankle") for s in ("left", "right")]
    heights = []
    for seed in range(12):
        scene = render_scene(seed, people=1, poses=["standing"], stature=(0.8, 0.8), occluders=0)
        points = scene.people[0].keypoints
        heights.append(points[ankles, 1].mean() - points[top, 1])
    assert 0.8 * 480 * 0.8 < np.median(heights) < 0.8 * 480


def test_other_skeletons_are_the_same_people_joined_by_name() -> None:
    whole, coco, lsp = (render_scene(11, skeleton=s) for s in (UNION19, COCO17, LSP14))
    assert np.array_equal(whole.image, coco.image)
    for all_joints, few, others in zip(whole.people, coco.people, lsp.people, strict=True):
        assert np.array_equal(few.keypoints, all_joints.keypoints[list(COCO17.indices_in(UNION19))])
        assert np.array_equal(others.keypoints, all_joints.keypoints[list(LSP14.indices_in(UNION19))])


@pytest.mark.parametrize(
    "options",
    [
        {"people": -1},
        {"people": (4, 2)},
        {"size": (8, 100)},
        {"stature": (0.0, 0.5)},
        {"stature": (0.9, 0.5)},
        {"poses": ["flying"]},
        {"skeleton": make_skeleton("odd", ["nose", "pelvis"], [])},
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        render_scene(0, **options)  # type: ignore[arg-type]


def test_tiny_people_and_close_ups_are_drawn_too() -> None:
    small = render_scene(4, people=5, stature=(0.06, 0.1))
    assert len(small.people) == 5
    close = render_scene(4, people=1, stature=(2.5, 2.5), occluders=0)
    assert any(v == 0 for v in close.people[0].keypoints[:, 2])


def test_poses_stay_within_what_joints_can_do() -> None:
    assert POSES.keys() == POSE_WEIGHTS.keys()
    for name, ranges in POSES.items():
        for angle, (low, high) in ranges.items():
            least, most = angle_limits(angle)
            assert least <= low <= high <= most, (name, angle)
    drawn = draw_pose(np.random.default_rng(0), "walking")
    assert set(drawn.angles) == set(angle_names())
    assert np.allclose(drawn.orientation @ drawn.orientation.T, np.eye(3))


@settings(max_examples=60)
@given(
    angles=st.dictionaries(st.sampled_from(angle_names()), st.floats(-300, 300)),
    yaw=st.floats(-180, 180),
    seed=st.integers(0, 1000),
)
def test_bones_keep_their_length_in_any_pose(angles: dict[str, float], yaw: float, seed: int) -> None:
    build = Build.random(np.random.default_rng(seed))
    points = pose_body(build, angles, turn("y", yaw)).points
    for side in ("left", "right"):
        for a, b, length in (
            ("hip", "knee", build.thigh),
            ("knee", "ankle", build.shank),
            ("shoulder", "elbow", build.upper_arm),
            ("elbow", "wrist", build.forearm),
        ):
            measured = np.linalg.norm(points[f"{side}_{a}"] - points[f"{side}_{b}"])
            assert measured == pytest.approx(length, abs=1e-9)
    hips = np.linalg.norm(points["left_hip"] - points["right_hip"])
    assert hips == pytest.approx(2 * build.hip_width, abs=1e-9)


def test_knees_and_elbows_bend_the_way_they_do() -> None:
    """A body facing us (z towards us): a bent knee takes the ankle back, a bent elbow brings the wrist forward."""
    angles = {"left_knee_flexion": 90.0, "left_elbow_flexion": 90.0}
    points = pose_body(Build(), angles, np.eye(3)).points
    assert points["left_ankle"][2] < points["left_knee"][2] - 0.2
    assert points["left_wrist"][2] > points["left_elbow"][2] + 0.1
    assert points["left_hip"][0] > 0 > points["right_hip"][0]
    straight = pose_body(Build(), {"left_knee_flexion": -80.0}, np.eye(3)).points
    assert straight["left_ankle"][2] == pytest.approx(straight["left_knee"][2], abs=1e-9), "no knee bends forwards"


def test_an_unknown_angle_is_named() -> None:
    with pytest.raises(ValueError, match="left_wing"):
        pose_body(Build(), {"left_wing": 3.0}, np.eye(3))


# pycocotools' masks do not take NumPy 2's copy keyword yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_coco_files_are_read_by_pycocotools_as_drawn(tmp_path: Path, scenes: list[Scene]) -> None:
    path = write_coco(scenes, tmp_path, quality=0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    for scene, image in zip(scenes, coco.dataset["images"], strict=True):
        pixels = cv2.cvtColor(cv2.imread(str(tmp_path / "images" / image["file_name"])), cv2.COLOR_BGR2RGB)
        assert np.array_equal(pixels, scene.image)
        annotations = coco.imgToAnns[image["id"]]
        assert len(annotations) == len(scene.people)
        for person, annotation in zip(scene.people, annotations, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), person.mask)
            encoded = coco.annToRLE(annotation)
            assert annotation["area"] == rle.area(encoded)
            assert annotation["bbox"] == rle.toBbox(encoded).tolist()
            joints = np.array(annotation["keypoints"]).reshape(-1, 3)
            labelled = person.keypoints[:, 2] > 0
            assert np.allclose(joints[labelled], person.keypoints[labelled], atol=0.006)
            assert not joints[~labelled].any(), "COCO gives zeros for joints without a label"
            assert annotation["num_keypoints"] == labelled.sum()
    assert coco.dataset["categories"][0]["keypoints"] == list(UNION19.joints)


def test_the_truth_as_an_answer_has_an_ap_of_one(tmp_path: Path) -> None:
    drawn = [render_scene(seed, size=(320, 240), people=3, skeleton=COCO17) for seed in range(4)]
    path = write_coco(drawn, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        fields = ("image_id", "category_id", "keypoints")
        answers = [{**{f: a[f] for f in fields}, "score": 1.0} for a in coco.dataset["annotations"]]
        evaluation = COCOeval(coco, coco.loadRes(answers), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_scenes_of_two_skeletons_do_not_go_into_one_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two skeletons"):
        write_coco([render_scene(0, skeleton=COCO17), render_scene(1, skeleton=LSP14)], tmp_path)
    with pytest.raises(ValueError, match="no scenes"):
        write_coco([], tmp_path / "none")


def test_the_command_writes_a_data_set(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = f"--count 3 --people 1-2 --size 160x120 --skeleton coco17 --seed 5 --out {tmp_path}/set --sheet {sheet}"
    done = run_command(*arguments.split())
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert cv2.imread(str(sheet)).shape == (120, 480, 3)
    expected = render_scene((5, 0), size=(160, 120), people=(1, 2), skeleton=COCO17)
    first = [a for a in data["annotations"] if a["image_id"] == 1]
    assert [a["area"] for a in first] == [p.area for p in expected.people]


@pytest.mark.parametrize("wrong", ["--people 5-2", "--people many", "--size 640", "--skeleton bird", "--pose flying"])
def test_the_command_refuses_wrong_options(tmp_path: Path, wrong: str) -> None:
    done = run_command("--count", "1", "--out", str(tmp_path), *wrong.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_drawing_needs_neither_torch_nor_a_model_runtime() -> None:
    code = "import sys, service.scenes; print([m for m in ('torch', 'onnxruntime', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.scenes", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
