"""Tensor checks: a caller's mistake is answered with the name, dtype and shape, whatever engine runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engines.base import ModelMetadata, TensorSpec
from service.engines.tensors import check_inputs, empty_outputs, join_rows, split_rows

POSE = ModelMetadata(
    name="pose",
    versions=(1,),
    platform="onnxruntime_onnx",
    max_batch_size=4,
    inputs=(TensorSpec("crops", "uint8", (8, 6, 3)), TensorSpec("weights", "float32", (-1,))),
    outputs=(TensorSpec("keypoints", "float32", (17, 3)), TensorSpec("maps", "float16", (-1, 2))),
)
SCALAR = ModelMetadata("one", (1,), "onnxruntime_onnx", 0, (TensorSpec("x", "int64", ()),), ())
PER_ROW = ModelMetadata("row", (1,), "onnxruntime_onnx", 4, (TensorSpec("x", "int64", ()),), ())


def test_rows_are_counted() -> None:
    for rows in (0, 1, 9):
        inputs: dict[str, Any] = {
            "weights": np.zeros((rows, 5), np.float32),
            "crops": np.zeros((rows, 8, 6, 3), np.uint8),
        }
        assert check_inputs(POSE, inputs) == rows
    assert check_inputs(SCALAR, {"x": np.array(3)}) == 1
    assert check_inputs(PER_ROW, {"x": np.zeros(7, np.int64)}) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": None}, "['crops', 'weights'], got ['crops']"),
        ({"extra": np.zeros(1)}, "'extra'"),
        ({"crops": np.zeros((2, 8, 6, 3), np.float32)}, "'crops' of model 'pose' must be uint8, got float32"),
        ({"crops": np.zeros((2, 8, 7, 3), np.uint8)}, "[2, 8, 6, 3] (rows first), got [2, 8, 7, 3]"),
        ({"crops": np.zeros((8, 6, 3), np.uint8)}, "got [8, 6, 3]"),
        ({"weights": np.zeros((3, 5), np.float32)}, "[2, -1] (rows first), got [3, 5]"),
        ({"weights": np.zeros((), np.float32)}, "got []"),
        ({"weights": np.zeros((2, 5), ">f4")}, "got >f4"),
        ({"weights": [[1.0, 2.0]]}, "NumPy array, got list"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], said: str) -> None:
    inputs: dict[str, Any] = {
        "crops": np.zeros((2, 8, 6, 3), np.uint8),
        "weights": np.zeros((2, 5), np.float32),
        **change,
    }
    with pytest.raises(ValueError) as caught:
        check_inputs(POSE, {name: array for name, array in inputs.items() if array is not None})
    assert said in str(caught.value)


def test_no_batch_axis_where_none_is_wanted_and_one_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"shape \[\], got \[1\]"):
        check_inputs(SCALAR, {"x": np.zeros(1, np.int64)})
    with pytest.raises(ValueError, match=r"got \[\]"):
        check_inputs(PER_ROW, {"x": np.array(3)})


def test_no_rows_give_empty_outputs_of_the_right_kind() -> None:
    outputs = empty_outputs(POSE)
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "keypoints": ((0, 17, 3), "float32"),
        "maps": ((0, 0, 2), "float16"),
    }


@given(rows=st.integers(1, 200), limit=st.integers(1, 40))
def test_splitting_is_even_complete_and_free(rows: int, limit: int) -> None:
    """Every row goes to one part, in order, no part over the limit, no part more than a row larger, no copies."""
    array = np.arange(rows * 2).reshape(rows, 2)
    parts = split_rows({"x": array}, rows, limit)
    sizes = [len(part["x"]) for part in parts]
    assert len(parts) == -(-rows // limit)
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert all(np.shares_memory(part["x"], array) for part in parts)
    np.testing.assert_array_equal(join_rows(parts)["x"], array)


def test_joining_one_part_copies_nothing() -> None:
    array = np.zeros(3)
    assert join_rows([{"x": array}])["x"] is array
