"""The pipeline on pictures whose people are known to the pixel, through a fake engine that sees only tensors."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.engines.fake import FakeEngine
from service.errors import EngineUnavailable, InferenceFailed, InvalidImage, InvalidOption, ModelNotFound, TooLarge
from service.oks import prediction_oks
from service.options import PoseOptions
from service.people import People
from service.pipeline import PosePipeline
from service.settings import Settings
from service.stages import Stages
from service.steps import Picture
from service.suppression import iou_matrix
from tests.service.marked_people import SIDE, SKELETON, Card, card_engine, encode, paint

CARDS = (Card(20, 30, 60, 120, 0.9), Card(150, 60, 80, 140, 0.7), Card(250, 10, 50, 100, 0.5))


@pytest.fixture
async def pipeline(engine: FakeEngine) -> AsyncIterator[PosePipeline]:
    await engine.start()
    made = PosePipeline(engine, Settings(cpu_threads=2))
    yield made
    made.close()


def one(*cards: Card, size: tuple[int, int] = (320, 240)) -> Picture:
    return Picture(encode(paint(cards, size)), 1)


async def test_joints_and_boxes_come_back_where_they_are(pipeline: PosePipeline) -> None:
    answer = await pipeline.run([one(*CARDS)], PoseOptions())
    people = answer.pictures[0].people
    assert len(people) == 3
    for index, card in enumerate(CARDS):
        # The detector sees a picture shrunk 2.5 times: its boxes are good to about that.
        assert np.abs(people.boxes[index] - [card.x, card.y, card.x + card.width, card.y + card.height]).max() <= 3
        assert np.abs(people.keypoints[index, :, :2] - card.points).max() < 0.6
        assert people.box_scores[index] == pytest.approx(card.score, abs=0.02)
        assert people.scores[index] == pytest.approx(people.box_scores[index] * 0.8)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(100, 900), st.integers(100, 900), st.floats(0, 1), st.floats(0, 1), st.floats(0.3, 0.9))
def test_any_size_any_place(width: int, height: int, fx: float, fy: float, part: float) -> None:
    """Letterbox, crop and the way back agree for every aspect ratio, also at the picture's rim."""
    long = part * min(width, height)
    card = Card(
        round(fx * (width - 0.6 * long)), round(fy * (height - long)), max(24, round(0.6 * long)), max(40, round(long))
    )

    async def run() -> None:
        engine = card_engine()
        await engine.start()
        pipeline = PosePipeline(engine, Settings(cpu_threads=2))
        try:
            answer = await pipeline.run([one(card, size=(width, height))], PoseOptions())
        finally:
            pipeline.close()
        people = answer.pictures[0].people
        assert len(people) == 1
        pixel = max(1.0, max(width, height) / SIDE)
        assert np.abs(people.keypoints[0, :, :2] - card.points).max() < 0.6 * pixel
        inside = np.clip([card.x, card.y, card.x + card.width, card.y + card.height], 0, [width, height] * 2)
        assert np.abs(people.boxes[0] - inside).max() <= 1.5 * pixel

    asyncio.run(run())


async def test_one_pose_call_holds_all_people_of_a_picture(pipeline: PosePipeline, engine: FakeEngine) -> None:
    await pipeline.run([one(*CARDS)], PoseOptions(fusion=(1, 0.5)))
    assert [call.model for call in engine.calls] == ["person_detector", "pose"]
    assert engine.calls[0].inputs["images"].shape == (1, SIDE, SIDE, 3)
    assert engine.calls[1].inputs["crops"].shape == (3, 128, 96, 3)
    assert np.array_equal(engine.calls[1].inputs["fusion_weights"], np.array([[1, 0.5]] * 3, np.float32))


async def test_the_detector_sees_all_pictures_of_a_request_at_once(pipeline: PosePipeline, engine: FakeEngine) -> None:
    pictures = [Picture(one(card).data, 10 + i) for i, card in enumerate(CARDS)]
    answer = await pipeline.run(pictures, PoseOptions())
    assert [picture.id for picture in answer.pictures] == [10, 11, 12]
    assert [len(picture.people) for picture in answer.pictures] == [1, 1, 1]
    for picture, card in zip(answer.pictures, CARDS, strict=True):
        assert np.abs(picture.people.keypoints[0, :, :2] - card.points).max() < 0.6
    detector_calls = [call for call in engine.calls if call.model == "person_detector"]
    assert [len(call.inputs["images"]) for call in detector_calls] == [3]


async def test_many_pictures_go_in_groups_and_stay_in_order(pipeline: PosePipeline) -> None:
    pictures = [Picture(one(Card(10 + 3 * i, 40, 60, 120)).data, i) for i in range(35)]
    answer = await pipeline.run(pictures, PoseOptions())
    found = [picture.people.keypoints[0, 0, 0] for picture in answer.pictures]
    assert np.abs(np.array(found) - [Card(10 + 3 * i, 40, 60, 120).points[0, 0] for i in range(35)]).max() < 0.6


async def test_nobody_is_an_answer_and_costs_no_pose_call(pipeline: PosePipeline, engine: FakeEngine) -> None:
    answer = await pipeline.run([one()], PoseOptions())
    assert len(answer.pictures[0].people) == 0
    assert answer.pictures[0].people.keypoints.shape == (0, 3, 3)
    assert [call.model for call in engine.calls] == ["person_detector"]


async def test_options_reach_their_steps(pipeline: PosePipeline) -> None:
    async def count(**options: object) -> int:
        return len((await pipeline.run([one(*CARDS)], PoseOptions(**options))).pictures[0].people)

    assert await count(max_people=2) == 2
    assert await count(box_threshold=0.6) == 2
    assert await count(box_threshold=0.0, nms_iou=1.0, nms_oks=1.0) == 6, "without suppression the doubles stay"
    assert await count(nms_iou=1.0) == 3, "OKS-NMS drops the doubles that box NMS let through"
    plain = (await pipeline.run([one(*CARDS)], PoseOptions(rescore=False))).pictures[0].people
    assert np.array_equal(plain.scores, plain.box_scores)


async def test_soft_suppression_writes_its_scores_into_the_answer(pipeline: PosePipeline) -> None:
    """The detector answers everybody twice; the double must stay, with a score that says that it is one."""

    async def people(**options: object) -> People:
        return (await pipeline.run([one(CARDS[0])], PoseOptions(**options))).pictures[0].people

    first, double = (await people(nms_iou=1, nms_oks=1)).box_scores
    boxes = await people(nms_boxes="soft", nms_iou=0.6, nms_oks=1, box_threshold=0.1)
    iou = iou_matrix(boxes.boxes, boxes.boxes)[0, 1]
    assert boxes.box_scores == pytest.approx([first, double * np.exp(-(iou**2) / 0.6)])
    assert boxes.scores == pytest.approx(boxes.box_scores * 0.8)
    linear = await people(nms_boxes="soft_linear", nms_iou=0.6, nms_oks=1, box_threshold=0)
    assert linear.box_scores == pytest.approx([first, double * (1 - iou)])
    assert len(await people(nms_boxes="soft", nms_oks=1, box_threshold=0.5)) == 1, "lowered below the threshold"

    poses = await people(nms_iou=1, nms_poses="soft", nms_oks=0.4)
    oks = prediction_oks(poses.keypoints, poses.boxes, SKELETON.sigmas)[0, 1]
    assert oks > 0.9
    assert poses.box_scores == pytest.approx([first, double])
    assert poses.scores == pytest.approx(poses.box_scores * 0.8 * [1, np.exp(-(oks**2) / 0.4)])


async def test_given_boxes_are_posed_as_they_are(pipeline: PosePipeline, engine: FakeEngine) -> None:
    """As ``evaluate --boxes truth`` asks: no detector, same order, nobody suppressed, score 1."""
    boxes = np.array([[c.x, c.y, c.x + c.width, c.y + c.height] for c in (CARDS[2], CARDS[0], CARDS[0])], float)
    answer = await pipeline.run([Picture(one(*CARDS).data, 1, boxes)], PoseOptions(max_people=1))
    people = answer.pictures[0].people
    assert np.array_equal(people.boxes, boxes)
    assert people.box_scores.tolist() == [1, 1, 1]
    assert np.abs(people.keypoints[0, :, :2] - CARDS[2].points).max() < 0.6
    assert np.abs(people.keypoints[1:, :, :2] - CARDS[0].points).max() < 0.6
    assert [call.model for call in engine.calls] == ["pose"]


async def test_no_given_boxes_is_nobody_and_mixes_with_detection(pipeline: PosePipeline, engine: FakeEngine) -> None:
    data = one(*CARDS).data
    answer = await pipeline.run([Picture(data, 1, np.zeros((0, 4))), Picture(data, 2)], PoseOptions())
    assert [len(picture.people) for picture in answer.pictures] == [0, 3]


async def test_boxes_beyond_the_picture_are_harmless(pipeline: PosePipeline) -> None:
    boxes = np.array([[-900.0, -900, -800, -700], [5000, 5000, 5001, 5001], [-1e5, -1e5, 1e5, 1e5]])
    answer = await pipeline.run([Picture(one(*CARDS).data, 1, boxes)], PoseOptions())
    assert np.isfinite(answer.pictures[0].people.keypoints).all()


async def test_flip_asks_the_flip_ensemble(pipeline: PosePipeline, engine: FakeEngine) -> None:
    await pipeline.run([one(*CARDS)], PoseOptions(flip=True))
    assert [call.model for call in engine.calls] == ["person_detector", "pose_flip"]


async def test_a_model_that_flips_by_default_may_be_told_not_to() -> None:
    engine = card_engine(flip="true")
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1))
    assert pipeline.presets.rows_for_one("pose", None) == 1, "it was not seen yet"
    answers = [await pipeline.run([one(*CARDS)], PoseOptions(flip=flip)) for flip in (None, False, True)]
    assert [answer.options.flip for answer in answers] == [True, False, True]
    assert [call.model for call in engine.calls[1::2]] == ["pose_flip", "pose", "pose_flip"]
    assert [pipeline.presets.rows_for_one("pose", flip) for flip in (None, False, True)] == [2, 1, 2]
    pipeline.close()


async def test_the_models_defaults_are_filled_in(pipeline: PosePipeline) -> None:
    options = (await pipeline.run([one()], PoseOptions())).options
    assert (options.score_threshold, options.box_threshold, options.fusion) == (0.3, 0.25, (1.0, 1.0))


async def test_the_worst_picture_is_named(pipeline: PosePipeline) -> None:
    good = one(*CARDS).data
    truncated = encode(paint(CARDS), ".jpg")[:-400]
    with pytest.raises(InvalidImage) as caught:
        await pipeline.run([Picture(good, 1), Picture(good, 2), Picture(truncated, 3), Picture(b"x", 4)], PoseOptions())
    assert caught.value.image_index == 3, "headers are read first"
    with pytest.raises(InvalidImage) as caught:
        await pipeline.run([Picture(good, 1), Picture(truncated, 2), Picture(truncated, 3)], PoseOptions())
    assert caught.value.image_index == 1


async def test_limits_of_the_settings_hold(engine: FakeEngine) -> None:
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1, max_image_bytes=100_000, max_pixels=400 * 300))
    with pytest.raises(TooLarge, match="100001 bytes"):
        await pipeline.run([Picture(b"x" * 100_001, 1)], PoseOptions())
    with pytest.raises(TooLarge, match="401x300"):
        await pipeline.run([one(size=(401, 300))], PoseOptions())
    several = await pipeline.run([one(*CARDS)] * 3, PoseOptions())
    assert [len(picture.people) for picture in several.pictures] == [3, 3, 3], "each picture by itself is small enough"
    pipeline.close()


async def test_options_that_do_not_fit_the_model_are_told() -> None:
    engine = card_engine(flip_model="")
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1))
    for options, said in (
        (PoseOptions(fusion=(1, 1, 1)), "2 radii"),
        (PoseOptions(flip=True), "mirrored"),
        (PoseOptions(model="person_detector"), "there are pose"),
        (PoseOptions(model="nope"), "there are pose"),
    ):
        with pytest.raises(InvalidOption, match=said):
            await pipeline.run([one()], options)


@pytest.mark.parametrize(
    "changes", [{"skeleton": "{"}, {"radii": None}, {"input_width": "wide"}, {"detector": "nobody"}], ids=str
)
async def test_a_config_without_its_parameters_is_the_servers_fault(changes: dict[str, object]) -> None:
    given = {key: value for key, value in changes.items() if value is not None}
    engine = card_engine(**given)
    if None in changes.values():
        del engine._models["pose"].metadata.parameters["radii"]  # type: ignore[attr-defined]
    await engine.start()
    with pytest.raises(ModelNotFound):
        await PosePipeline(engine, Settings(cpu_threads=1)).run([one()], PoseOptions())


async def test_engine_errors_come_through(pipeline: PosePipeline, engine: FakeEngine) -> None:
    engine.failures["pose"] = InferenceFailed("out of memory")
    with pytest.raises(InferenceFailed, match="out of memory"):
        await pipeline.run([one(*CARDS)], PoseOptions())
    engine.available = False
    with pytest.raises(EngineUnavailable):
        await pipeline.run([one(*CARDS)], PoseOptions())


async def test_a_model_that_answers_nan_is_found_out(pipeline: PosePipeline, engine: FakeEngine) -> None:
    fake = engine._models["pose"]
    broken = type(fake)(
        fake.metadata, lambda inputs: {"keypoints": np.full((len(inputs["crops"]), 3, 3), np.nan, "f4")}
    )
    engine._models["pose"] = broken
    with pytest.raises(InferenceFailed, match="finite"):
        await pipeline.run([one(*CARDS)], PoseOptions())


async def test_pixels_are_kept_only_for_drawing_and_stages_are_told(pipeline: PosePipeline) -> None:
    stages = Stages()
    answer = await pipeline.run([one(*CARDS)], PoseOptions(), stages)
    assert answer.pictures[0].pixels is None
    assert {"decode", "letterbox", "detector", "suppress", "crop", "pose", "people"} <= set(stages.seconds)
    kept = await pipeline.run([one(*CARDS)], PoseOptions(), keep_pixels=True)
    assert np.array_equal(kept.pictures[0].pixels, paint(CARDS))


async def test_pixels_that_are_kept_count_until_they_are_let_go(engine: FakeEngine) -> None:
    """Else drawn answers of large photographs would pile up beside the budget."""
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1, max_pixels=100_000, pixel_budget=100_000))
    async with AsyncExitStack() as until:
        await pipeline.run([one(*CARDS)], PoseOptions(), keep_pixels=True, until=until)
        other = asyncio.ensure_future(pipeline.run([one(*CARDS)], PoseOptions()))
        await asyncio.sleep(0.2)
        assert not other.done()
    assert len((await asyncio.wait_for(other, 20)).pictures[0].people) == len(CARDS)
    engine.failures["pose"] = InferenceFailed("out of memory")
    async with AsyncExitStack() as until:
        with pytest.raises(InferenceFailed):
            await pipeline.run([one(*CARDS)], PoseOptions(), keep_pixels=True, until=until)
        engine.failures.clear()
        await asyncio.wait_for(pipeline.run([one(*CARDS)], PoseOptions()), 20)  # what failed holds nothing
        with pytest.raises(ValueError, match="2 pictures"):
            await pipeline.run([one(*CARDS)] * 2, PoseOptions(), keep_pixels=True, until=until)
    pipeline.close()


async def test_files_that_are_dear_to_decode_are_decoded_one_after_the_other(engine: FakeEngine) -> None:
    """By their pixels alone two of them would fit; a WebP with transparency takes three times the memory of a JPEG."""
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1, max_pixels=200_000, pixel_budget=200_000))
    buffer = io.BytesIO()
    image = Image.fromarray(paint(CARDS))
    image.putalpha(200)
    image.save(buffer, "WEBP")
    for data, beside in ((encode(paint(CARDS), ".jpg"), True), (buffer.getvalue(), False)):
        first, second = (
            asyncio.ensure_future(pipeline.run([Picture(data, 1, np.zeros((0, 4)))], PoseOptions())) for _ in range(2)
        )
        free = []
        while not (first.done() and second.done()):
            free.append(pipeline._budget._free)
            await asyncio.sleep(0)
        await asyncio.gather(first, second)
        held = 200_000 - min(free)
        assert held == (2 * 320 * 240 if beside else 200_000)
    pipeline.close()


async def test_many_requests_at_a_time_do_not_mix(pipeline: PosePipeline) -> None:
    cards = [Card(5 + 4 * i, 20 + 2 * i, 60, 120, 0.5 + 0.01 * i) for i in range(40)]
    answers = await asyncio.gather(*(pipeline.run([one(card)], PoseOptions()) for card in cards))
    for card, answer in zip(cards, answers, strict=True):
        assert np.abs(answer.pictures[0].people.keypoints[0, :, :2] - card.points).max() < 0.6


async def test_the_event_loop_stays_free_while_pixels_are_worked_on(engine: FakeEngine) -> None:
    """Blocking decode in the loop is the classic fault of vision services: health checks then time out."""
    await engine.start()
    pipeline = PosePipeline(engine, Settings(cpu_threads=1))
    noise = np.random.default_rng(0).integers(0, 255, (1800, 2500, 3), np.uint8)
    slow = Picture(cv2.imencode(".png", noise)[1].tobytes(), 1, np.zeros((0, 4)))
    work = asyncio.ensure_future(pipeline.run([slow], PoseOptions()))
    loop, longest = asyncio.get_running_loop(), 0.0
    while not work.done():
        before = loop.time()
        await asyncio.sleep(0.002)
        longest = max(longest, loop.time() - before)
    await work
    assert longest < 0.15
    pipeline.close()


async def test_a_model_that_is_being_replaced_is_waited_for(pipeline: PosePipeline, engine: FakeEngine) -> None:
    """Triton is without a model while it loads one of other tensors: callers shall not notice."""
    engine.has_gaps = True
    expected = await pipeline.run([one(*CARDS)], PoseOptions())
    gone = engine._models.pop("pose")
    asking = asyncio.ensure_future(pipeline.run([one(*CARDS)], PoseOptions()))
    await asyncio.sleep(0.3)
    assert not asking.done()
    engine._models["pose"] = gone
    assert np.array_equal((await asking).pictures[0].people.keypoints, expected.pictures[0].people.keypoints)


async def test_a_model_that_stays_away_is_told(
    pipeline: PosePipeline, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.pipeline._GAP_SECONDS", 0.2)
    engine.has_gaps = True
    await pipeline.run([one(*CARDS)], PoseOptions())
    del engine._models["pose"]
    with pytest.raises(ModelNotFound, match="'pose' is not loaded"):
        await pipeline.run([one(*CARDS)], PoseOptions())
    with pytest.raises(ModelNotFound, match="no pose model"):  # at once: it is known to be gone
        await pipeline.run([one(*CARDS)], PoseOptions())
