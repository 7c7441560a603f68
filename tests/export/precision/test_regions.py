"""If these fail, box coordinates or a softmax are rounded to half, or a block's cost is not what it takes to run."""

from pathlib import Path

import numpy as np
import pytest

from export.checkpoints import ExportError
from export.precision.regions import WEIGHTED, blocks, costs, prepared, region, weighted
from tests.export.precision.graphs import CHANNELS, SIDE, pictures, small_graph

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def test_only_convolutions_and_what_lies_between_them_leave_float() -> None:
    assert region(small_graph()) == {"conv1", "pool", "norm", "relu", "conv2"}


def test_of_the_detector_no_coordinate_leaves_float() -> None:
    model = prepared(REPOSITORY / "person_detector/1/model.onnx")
    inside = region(model)
    operators = {node.op_type for node in model.graph.node if node.name in inside}
    assert operators >= {"Conv", "Relu"}
    assert not operators & {"TopK", "NonMaxSuppression", "RoiAlign", "Exp", "Gather", "GatherElements", "Div", "Sub"}
    # A sum of maps has four axes, a sum of coordinates or indices has fewer.
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in model.graph.value_info
        if value.type.tensor_type.HasField("shape")
    }
    sums = [node.output[0] for node in model.graph.node if node.name in inside and node.op_type == "Add"]
    assert sums and all(ranks[name] == 4 for name in sums if name in ranks)


def test_costs_are_the_multiply_adds_of_the_closed_form() -> None:
    first, second = SIDE * SIDE * CHANNELS * 27, SIDE * SIDE * 4 * CHANNELS
    found = costs(small_graph(), {"images": pictures(1)})
    assert found == pytest.approx({"conv1": first / (first + second), "conv2": second / (first + second)})


def test_blocks_hold_every_weighted_node_once() -> None:
    model = prepared(REPOSITORY / "pose_heads/1/model.onnx")
    names = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
    shares = {name: 1 / len(names) for name in names}
    found = blocks(model, shares, 10)
    assert sorted(name for block in found for name in block.nodes) == sorted(names)
    assert sum(block.share for block in found) == pytest.approx(1)
    assert (found[0].name, found[0].nodes) == ("first", (names[0],))
    assert found[-1].name == "heads" and names[-1] in found[-1].nodes
    assert weighted(model, found[1:]) == [names[0]]


def test_folding_keeps_what_the_network_answers(tmp_path: Path) -> None:
    from export.precision.regions import session

    crops = np.random.default_rng(0).integers(0, 256, (1, 256, 192, 3)).astype(np.uint8)
    path = REPOSITORY / "pose_heads/1/model.onnx"
    import onnx

    before, after = (session(m, 1).run(None, {"crops": crops}) for m in (onnx.load(path), prepared(path)))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_what_is_no_network_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=str(path)):
        prepared(path)
