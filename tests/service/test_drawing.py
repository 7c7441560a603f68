"""Drawing: limbs where the joints are, left and right told apart, the picture itself untouched."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.drawing import LEFT, RIGHT, draw_people, encode_picture, joint_colour
from service.people import People, PosedPicture
from service.skeletons import COCO17

INDEX = {joint: k for k, joint in enumerate(COCO17.joints)}


def picture(score: float = 0.9, offset: float = 0.0) -> PosedPicture:
    joints = np.zeros((1, 17, 3))
    joints[0, :, :2] = np.array([[(k * 37) % 160 + 20, (k * 53) % 200 + 20] for k in range(17)]) + offset
    joints[0, :, 2] = score
    people = People(np.array([[10, 10, 190, 230.0]]) + offset, np.array([0.9]), joints, np.array([0.8]))
    return PosedPicture(1, 200, 240, people, np.full((240, 200, 3), 127, np.uint8))


def test_joints_have_their_sides_colour_at_their_place() -> None:
    original = picture()
    drawn = draw_people(original, COCO17, 0.5)
    for joint in ("left_wrist", "right_wrist", "left_ankle", "right_ankle"):
        x, y = original.people.keypoints[0, INDEX[joint], :2].astype(int)
        assert tuple(drawn[y, x]) == joint_colour(joint)
    assert joint_colour("left_knee") == LEFT
    assert joint_colour("right_knee") == RIGHT
    assert (original.pixels == 127).all()


def test_unsure_joints_are_not_drawn() -> None:
    drawn = draw_people(picture(score=0.4), COCO17, 0.5)
    assert not (drawn == LEFT).all(-1).any()
    assert not (drawn == RIGHT).all(-1).any()


@pytest.mark.parametrize("offset", [-1e9, -150, 150, 1e9])
def test_people_beyond_the_rim_do_no_harm(offset: float) -> None:
    assert draw_people(picture(offset=offset), COCO17, 0.5).shape == (240, 200, 3)


def test_without_pixels_there_is_nothing_to_draw_on() -> None:
    empty = PosedPicture(1, 2, 2, People.nobody(17))
    with pytest.raises(ValueError, match="pixels"):
        draw_people(empty, COCO17, 0.5)


def test_drawing_in_place_gives_the_same_picture() -> None:
    """Of a large photograph each copy is 150 MB."""
    expected, own = draw_people(picture(), COCO17, 0.5), picture()
    drawn = draw_people(own, COCO17, 0.5, in_place=True)
    assert drawn is own.pixels
    assert np.array_equal(drawn, expected)
    for media_type in ("image/png", "image/jpeg"):
        assert encode_picture(drawn.copy(), media_type, overwrite=True) == encode_picture(expected, media_type)
    locked = picture()
    assert locked.pixels is not None
    locked.pixels.flags.writeable = False
    assert np.array_equal(draw_people(locked, COCO17, 0.5, in_place=True), expected)


@pytest.mark.parametrize(("media_type", "name"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_files_are_what_they_say_in_rgb(media_type: str, name: str) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = 250
    with Image.open(io.BytesIO(encode_picture(pixels, media_type))) as read:
        assert read.format == name
        assert np.abs(np.asarray(read).astype(int) - pixels).max() <= 3
