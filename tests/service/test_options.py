"""Options: a typo or a NaN must be told, never silently replaced by a default."""

from __future__ import annotations

import math
import time

import pytest

from service.errors import InvalidOption
from service.options import PoseOptions, read_options


def test_text_as_it_arrives_from_queries() -> None:
    options = read_options(
        [("model", "pose_lsp14"), ("score_threshold", "0.25"), ("max_people", "7"), ("rescore", "false"),
         ("flip", "true"), ("fusion", "1, 0,0.5"), ("format", "results")]
    )  # fmt: skip
    assert options == PoseOptions(
        model="pose_lsp14", score_threshold=0.25, max_people=7, rescore=False, flip=True, fusion=(1, 0, 0.5),
        format="results",
    )  # fmt: skip
    assert options.echo()["fusion"] == "1,0,0.5"


def test_defaults_are_the_documented_ones() -> None:
    options = read_options([])
    assert (options.max_people, options.nms_iou, options.nms_oks) == (20, 0.6, 0.5)
    assert (options.nms_boxes, options.nms_poses) == ("hard", "hard")
    assert options.rescore is True
    assert options.flip is None
    assert options.format == "coco"


def test_rescoring_variants_by_name() -> None:
    assert read_options([("rescore", "1")]).rescore is True
    assert read_options([("rescore", "mean_over_0.2")]).rescore == "mean_over_0.2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", "nan"), ("score_threshold", "1.01"), ("box_threshold", "-0.1"), ("box_threshold", "inf"),
        ("max_people", "0"), ("max_people", "201"), ("max_people", "2.5"), ("max_people", ""), ("nms_iou", "NaN"),
        ("nms_iou", "2"), ("nms_oks", "-1"), ("nms_oks", math.nan), ("rescore", "median"), ("flip", "perhaps"),
        ("nms_boxes", "gaussian"), ("nms_poses", "true"),
        ("fusion", ""), ("fusion", "1,,1"), ("fusion", "nan,1,1"), ("fusion", "-1,1,1"), ("fusion", "0,0,0"),
        ("fusion", "9,1,1"), ("fusion", "inf"), ("format", "xml"), ("model", ""), ("model", "x" * 101),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidOption) as caught:
        read_options([(name, value)])
    assert caught.value.detail.startswith(f"{name}: ")
    assert caught.value.status == 422


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidOption) as caught:
        read_options([("nms_iou", "2"), ("max_people", "-1")])
    assert "nms_iou" in caught.value.detail
    assert "max_people" in caught.value.detail


def test_typos_are_told_with_what_was_meant() -> None:
    with pytest.raises(InvalidOption, match=r"max_peple: unknown option; did you mean max_people\?"):
        read_options([("max_peple", "3")])
    with pytest.raises(InvalidOption, match=r"zzz: unknown option$"):
        read_options([("zzz", "3")])


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(InvalidOption, match="flip: given twice"):
        read_options([("flip", "true"), ("flip", "false")])


def test_the_settings_model_is_a_default_only() -> None:
    defaults = PoseOptions(model="pose_small")
    assert read_options([], defaults).model == "pose_small"
    assert read_options([("model", "pose")], defaults).model == "pose"


def test_names_and_values_without_end_are_refused_at_once() -> None:
    """Options are read on the event loop: comparing a name of 3 MB with ours stopped everybody for half a second."""
    long, many = "x" * 3_000_000, [(f"option_{n}", "1") for n in range(20_000)]
    nested = [["1"] * 100_000]
    hostile = ([(long, 1)], [("max_people", long)], [("fusion", ["1"] * 100_000)], [("fusion", nested)],
               [("model", {long: nested})], many, [(long, 1), (long, 1)])  # fmt: skip
    for given in hostile:
        started = time.thread_time()
        with pytest.raises(InvalidOption) as caught:
            read_options(given)
        assert time.thread_time() - started < 0.05
        assert len(caught.value.detail) < 500
    likely = [(f"max_peopl{n}" + "e" * 50, "1") for n in range(32)]
    with pytest.raises(InvalidOption) as caught:
        read_options(likely)
    assert len(caught.value.detail) < 5000


@pytest.mark.parametrize("name", ["max_people", "score_threshold", "fusion"])
def test_a_number_of_thousands_of_digits_is_out_of_range(name: str) -> None:
    for value in (10**4000, -(10**4000), [10**4000, 1, 1]):
        with pytest.raises(InvalidOption, match=name):
            read_options([(name, value)])
