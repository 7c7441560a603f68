"""If these fail, a converted network that finds other people is published."""

from pathlib import Path

import numpy as np
import pytest

from export.checkpoints import ExportError
from export.precision.comparison import Question, Replaced, apart, ask, compare, questions
from export.precision.conversion import read_configs
from export.samples import Sample, Samples
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def pose(keypoints: list[list[float]]) -> dict[str, np.ndarray]:
    return {"keypoints": np.array([keypoints], np.float32)}


def boxes(*found: tuple[float, float, float, float, float]) -> dict[str, np.ndarray]:
    array = np.array([found], np.float32)
    return {"boxes": array[..., :4], "scores": array[..., 4]}


JOINTS = Question("pose", "pose", {}, 0.2)
BOXES = Question("person_detector", "detector", {}, 0.4)


def test_only_joints_count_that_the_float_network_is_sure_of() -> None:
    distances, scores = apart(JOINTS, pose([[0, 0, 0.9], [5, 5, 0.1]]), pose([[3, 4, 0.8], [90, 90, 0.9]]))
    np.testing.assert_allclose(distances, [5])
    np.testing.assert_allclose(scores, [0.1], atol=1e-6)


def test_an_answer_that_is_no_number_passes_nowhere() -> None:
    (found,) = compare([JOINTS], [pose([[0, 0, 0.9]])], [pose([[np.nan, 0, 0.9]])], "int8")
    assert not found.passes and found.largest == np.inf


def test_an_invented_person_counts_as_much_as_a_lost_one() -> None:
    one, two = (10, 10, 50, 90, 0.9), (200, 10, 240, 90, 0.8)
    for first, second in ((boxes(one, two), boxes(one, one)), (boxes(one, one), boxes(one, two))):
        distances, _ = apart(BOXES, first, second)
        assert sorted(distances)[-1] == 190


def test_boxes_that_the_service_would_not_keep_do_not_count() -> None:
    distances, _ = apart(BOXES, boxes((10, 10, 50, 90, 0.9), (0, 0, 9, 9, 0.3)), boxes((11, 10, 50, 90, 0.9)))
    np.testing.assert_allclose(distances, [1, 1])


def test_limits_are_those_of_the_precision() -> None:
    moved = [pose([[0.5, 0, 0.9]])]
    (half,) = compare([JOINTS], [pose([[0, 0, 0.9]])], moved, "fp16")
    (eighth,) = compare([JOINTS], [pose([[0, 0, 0.9]])], moved, "int8")
    assert not half.passes and eighth.passes


async def test_ensembles_are_asked_with_the_network_replaced() -> None:
    """Maps with one peak each, in place of the trunk's: the shipped fusion must find the joints there."""
    configs = read_configs(REPOSITORY)
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    samples = Samples("noise", (Sample(image, np.array([[20.0, 20.0, 200.0, 280.0]])),))
    wanted = questions(configs, ["pose_heads"], samples, 4)
    assert [question.model for question in wanted] == ["pose", "pose_lsp14"]
    specs = configs["pose_heads"].metadata.outputs

    def peaks(inputs: object) -> dict[str, np.ndarray]:
        maps = np.full((1, *specs[0].shape), 1e-6, np.float32)
        maps[:, :, 20, 10] = 1.0
        return {spec.name: maps for spec in specs}

    engine = EmbeddedEngine(REPOSITORY, RuntimeSettings(intra_op_threads=1))
    await engine.start()
    try:
        (answer, _) = await ask(Replaced(engine, configs, {"pose_heads": peaks}), wanted)
    finally:
        await engine.close()
    # Cell (10, 20) of a map with stride 4: x = (10 + 0.5) * 4 - 0.5.
    np.testing.assert_allclose(answer["keypoints"][0, :, :2], [[41.5, 81.5]] * 17, atol=0.01)


def test_a_network_whose_answers_nothing_explains_is_refused() -> None:
    configs = read_configs(REPOSITORY)
    samples = Samples("none", ())
    with pytest.raises(ExportError, match="pose_flip_average is no detector and in no pose ensemble"):
        questions(configs, ["pose_flip_average"], samples, 4)
