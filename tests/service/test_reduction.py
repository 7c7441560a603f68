"""Decoding at a reduced scale: it may save time, never a person's resolution, and no joint may move for it."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.engines.fake import FakeEngine
from service.image_header import read_header
from service.images import decode, decode_reduced, reducible
from service.options import PoseOptions
from service.people import People
from service.pipeline import PosePipeline
from service.pyramid import Pyramid
from service.settings import Settings
from service.stages import Stages
from service.steps import Picture
from tests.service.marked_people import Card, card_engine, paint

LIMIT = 50_000_000
SIZE = (1920, 1440)
LARGE = (Card(200, 150, 500, 1000), Card(1100, 300, 450, 900, 0.7))
SMALL = Card(900, 40, 120, 200, 0.6)


def smooth(width: int, height: int) -> npt.NDArray[np.uint8]:
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def jpeg(picture: npt.NDArray[np.uint8], orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_reduced_picture_is_the_whole_one_averaged(level: int, orientation: int) -> None:
    data = jpeg(smooth(320, 240), orientation)
    header = read_header(data, LIMIT)
    whole, reduced = Pyramid(decode(data, header)), decode_reduced(data, header, level)
    assert reduced.lowest == level
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    difference = reduced.level(level).astype(int) - whole.level(level)
    assert np.abs(difference).max() <= 6, "the same pixels, on the same centres"
    with pytest.raises(ValueError, match="begins at"):
        reduced.level(0)


def test_only_what_divides_is_reduced() -> None:
    """Half pixels at a rim would move joints of mirrored pictures."""
    for size, level in (((320, 240), 3), ((324, 240), 2), ((322, 240), 1), ((321, 240), 0), ((320, 241), 0)):
        header = read_header(jpeg(smooth(*size)), LIMIT)
        assert reducible(header, 3) == level
    for image_format in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(smooth(320, 240)).save(buffer, image_format)
        header = read_header(buffer.getvalue(), LIMIT)
        assert decode_reduced(buffer.getvalue(), header, 3).lowest == 0


async def answer(picture: Picture, *, reduced: bool = True, **options: object) -> tuple[People, list[tuple[int, ...]]]:
    """The people, and the size of each picture that was decoded."""
    engine, decoded = card_engine(), []
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1, reduced_decoding=reduced))
    real = cv2.imdecode

    def imdecode(data: object, flags: int) -> object:
        found = real(data, flags)
        decoded.append(found.shape[:2])
        return found

    cv2.imdecode = imdecode
    try:
        found = await pipeline.run([picture], PoseOptions(), Stages(), **options)
    finally:
        cv2.imdecode = real
        pipeline.close()
    assert (found.pictures[0].width, found.pictures[0].height) == SIZE
    return found.pictures[0].people, decoded


async def test_large_people_are_the_same_from_half_a_picture() -> None:
    picture = Picture(jpeg(paint(LARGE, SIZE)), 1)
    people, decoded = await answer(picture)
    expected, whole = await answer(picture, reduced=False)
    assert decoded == [(720, 960)]
    assert whole == [(1440, 1920)]
    assert len(people) == len(LARGE)
    assert np.abs(people.keypoints - expected.keypoints)[..., :2].max() < 1, "a thousandth of their height"
    for card, joints in zip(LARGE, people.keypoints, strict=True):
        # A crop's pixel is 8 to 10 of the picture's here.
        assert np.abs(joints[:, :2] - card.points).max() < 3


async def test_a_small_person_is_cut_from_the_whole_picture() -> None:
    picture = Picture(jpeg(paint((*LARGE, SMALL), SIZE)), 1)
    people, decoded = await answer(picture)
    expected, _ = await answer(picture, reduced=False)
    assert decoded == [(720, 960), (1440, 1920)]
    assert len(people) == 3
    assert np.abs(people.keypoints - expected.keypoints)[..., :2].max() < 0.5
    assert np.abs(people.keypoints[2, :, :2] - SMALL.points).max() < 0.6


async def test_given_boxes_decide_before_anything_is_decoded() -> None:
    data = jpeg(paint((*LARGE, SMALL), SIZE))
    for cards, size in ((LARGE, (180, 240)), ((*LARGE, SMALL), (1440, 1920)), ((), (180, 240))):
        boxes = np.array([[c.x, c.y, c.x + c.width, c.y + c.height] for c in cards], float).reshape(-1, 4)
        people, decoded = await answer(Picture(data, 1, boxes))
        assert decoded == [size]
        assert len(people) == len(cards)


async def test_a_picture_to_draw_on_is_whole() -> None:
    _, decoded = await answer(Picture(jpeg(paint(LARGE, SIZE)), 1), keep_pixels=True)
    assert decoded == [(1440, 1920)]


async def test_ordinary_pictures_are_decoded_whole(engine: FakeEngine) -> None:
    """Where the first guess would be wrong as often as right nothing is won."""
    await engine.start()
    pipeline, stages = PosePipeline(engine, Settings(cpu_threads=1)), Stages()
    picture = Picture(jpeg(paint((Card(60, 40, 200, 400),), (640, 480))), 1)
    found = await pipeline.run([picture], PoseOptions(), stages, keep_pixels=True)
    assert found.pictures[0].pixels is not None
    assert found.pictures[0].pixels.shape == (480, 640, 3)
    pipeline.close()
