"""Ensembles: wired as the config says, run as data becomes ready, and refused at start when the wiring is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from service.engines.base import Array, Tensors
from service.engines.config import RepositoryError, read_repository
from service.engines.ensembles import DataFlow, check_ensembles
from tests.service.engines.repositories import FLOAT, OUT, ROW, UINT8, Repository

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def compute(model: str, inputs: Tensors) -> dict[str, Array]:
    """The parts in NumPy."""
    if model == "add":
        return {"sum": inputs["a"] + inputs["b"]}  # type: ignore[operator]
    return {"y": inputs["x"] * float(model.removeprefix("times"))}  # type: ignore[operator]


def diamond(repository: Repository, last: str = "y") -> None:
    """y = 2x + 3x, with steps listed against the flow."""
    repository.affine("times2", 2)
    repository.affine("times3", 3)
    repository.add()
    steps = [
        ("add", {"a": "left", "b": "right"}, {"sum": last}),
        ("times3", {"x": "x"}, {"y": "right"}),
        ("times2", {"x": "x"}, {"y": "left"}),
    ]
    repository.ensemble("diamond", steps, ROW, OUT)


def test_independent_steps_begin_at_the_same_time(repository: Repository) -> None:
    diamond(repository)
    models = read_repository(repository.root)
    check_ensembles(models)
    flow = DataFlow(models["diamond"], {"x": X})
    begun = flow.begin()
    assert sorted(step.model for step, _ in begun) == ["times2", "times3"]
    assert flow.begin() == []
    for step, inputs in begun:
        assert not flow.finished
        flow.end(step, compute(step.model, inputs))
    ((step, inputs),) = flow.begin()
    assert step.model == "add" and not flow.finished
    flow.end(step, compute(step.model, inputs))
    assert flow.finished
    np.testing.assert_array_equal(flow.outputs()["y"], 5 * X)


def test_a_slow_branch_does_not_hold_up_the_other(repository: Repository) -> None:
    """Data flow, not waves: the second step of one branch begins while the other's first still runs."""
    for factor in (2, 3, 5):
        repository.affine(f"times{factor}", factor)
    repository.add()
    steps = [
        ("times2", {"x": "x"}, {"y": "slow"}),
        ("times3", {"x": "x"}, {"y": "fast"}),
        ("times5", {"x": "fast"}, {"y": "faster"}),
        ("add", {"a": "slow", "b": "faster"}, {"sum": "y"}),
    ]
    repository.ensemble("e", steps, ROW, OUT)
    flow = DataFlow(read_repository(repository.root)["e"], {"x": X})
    (slow, slow_inputs), (fast, fast_inputs) = flow.begin()
    flow.end(fast, compute(fast.model, fast_inputs))
    ((faster, inputs),) = flow.begin()
    assert faster.model == "times5"
    flow.end(faster, compute(faster.model, inputs))
    assert flow.begin() == [] and not flow.finished
    flow.end(slow, compute(slow.model, slow_inputs))
    ((add, inputs),) = flow.begin()
    flow.end(add, compute(add.model, inputs))
    np.testing.assert_array_equal(flow.outputs()["y"], 17 * X)


def absent(r: Repository) -> None:
    r.ensemble("e", [("gone", {"x": "x"}, {"y": "y"})], ROW, OUT)


def version(r: Repository) -> None:
    path = r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], ROW, OUT)
    path.write_text(path.read_text().replace("model_version: -1", "model_version: 4"))


def unmapped_input(r: Repository) -> None:
    r.ensemble("e", [("add", {"a": "x"}, {"sum": "y"})], ROW, OUT)


def unknown_input(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x", "z": "x"}, {"y": "y"})], ROW, OUT)


def unknown_output(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"z": "y"})], ROW, OUT)


def no_output(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {})], ROW, OUT)


def never_written(r: Repository) -> None:
    r.ensemble("e", [("add", {"a": "x", "b": "phantom"}, {"sum": "y"})], ROW, OUT)


def output_never_written(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "z"})], ROW, OUT)


def written_twice(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"}), ("times3", {"x": "x"}, {"y": "y"})], ROW, OUT)


def input_overwritten(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "x"}), ("times3", {"x": "x"}, {"y": "y"})], ROW, OUT)


def cycle(r: Repository) -> None:
    steps = [("add", {"a": "x", "b": "round"}, {"sum": "y"}), ("times2", {"x": "y"}, {"y": "round"})]
    r.ensemble("e", steps, ROW, OUT)


def dtype(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], {"x": (UINT8, [3])}, OUT)


def shape(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], {"x": (FLOAT, [4])}, OUT)


def output_shape(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], ROW, {"y": (FLOAT, [2])})


def batch(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], ROW, OUT, max_batch_size=9)


def no_batch_axis(r: Repository) -> None:
    r.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], ROW, OUT, max_batch_size=0)


def contain_each_other(r: Repository) -> None:
    r.ensemble("e", [("f", {"x": "x"}, {"y": "y"})], ROW, OUT)
    r.ensemble("f", [("e", {"x": "x"}, {"y": "y"})], ROW, OUT)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (absent, "step 1 names the model 'gone', which is not in the repository"),
        (version, "step 1 asks for version 4 of 'times2', served are [1]"),
        (unmapped_input, "input_map ['a'], but 'add' takes ['a', 'b']"),
        (unknown_input, "input_map ['x', 'z'], but 'times2' takes ['x']"),
        (unknown_output, "output_map ['z'], but 'times2' gives ['y']"),
        (no_output, "output_map [], but 'times2' gives ['y']"),
        (never_written, "{1: ['phantom']}"),
        (output_never_written, "no step writes the output 'y'"),
        (written_twice, "'y' is written twice"),
        (input_overwritten, "'x' is written twice"),
        (cycle, "a cycle"),
        (dtype, "step 1: 'x' is uint8 [-1, 3] but is read as float32 [-1, 3]"),
        (shape, "step 1: 'x' is float32 [-1, 4] but is read as float32 [-1, 3]"),
        (output_shape, "output 'y' is float32 [-1, 3] but is read as float32 [-1, 2]"),
        (batch, "max_batch_size 9 is more than the 8 of 'times2'"),
        (no_batch_axis, "'x' is float32 [3] but is read as float32 [-1, 3]"),
        (contain_each_other, "contain each other: e -> f -> e"),
    ],
)
def test_wrong_wiring_is_refused(repository: Repository, build: Callable[[Repository], None], said: str) -> None:
    repository.affine("times2", 2)
    repository.affine("times3", 3)
    repository.add()
    build(repository)
    with pytest.raises(RepositoryError) as caught:
        check_ensembles(read_repository(repository.root))
    assert str(repository.root / "e" / "config.pbtxt") in str(caught.value)
    assert said in str(caught.value)


def test_free_axes_fit_fixed_ones(repository: Repository) -> None:
    """A part may be more general than the ensemble and the other way round; the run decides."""
    repository.affine("times2", 2)
    repository.ensemble("e", [("times2", {"x": "x"}, {"y": "y"})], {"x": (FLOAT, ["W"])}, {"y": (FLOAT, ["W"])})
    check_ensembles(read_repository(repository.root))
