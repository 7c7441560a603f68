"""If these fail, FP16 changes what a model takes or gives, or rounds what must not be rounded."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.checkpoints import ExportError
from export.precision.half import half_precision, spell_out_norms
from export.precision.regions import prepared, session
from tests.export.precision.graphs import pictures, small_graph, weight

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def test_inputs_and_outputs_stay_as_they_are_and_answers_nearly() -> None:
    model = small_graph()
    half = half_precision(model)
    assert list(half.graph.input) == list(model.graph.input) and list(half.graph.output) == list(model.graph.output)
    (expected,), (found,) = (session(m, 1).run(None, {"images": pictures()}) for m in (model, half))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.01
    assert np.abs(found - expected).max() > 0, "nothing was computed in half"


def test_convolutions_compute_in_half_and_the_softmax_does_not() -> None:
    half = onnx.shape_inference.infer_shapes(half_precision(small_graph()), strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*half.graph.value_info, *half.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    nodes = {node.name: node for node in half.graph.node}
    assert [types[name] for name in nodes["conv1"].input] == [TensorProto.FLOAT16] * 3
    assert types[nodes["softmax"].input[0]] == TensorProto.FLOAT == types[nodes["softmax"].output[0]]
    assert types[nodes["centre"].output[0]] == TensorProto.FLOAT


def test_a_node_that_is_kept_computes_in_float() -> None:
    nodes = {node.name: node for node in half_precision(small_graph(), ["conv2"]).graph.node}
    assert nodes["conv2"].input[1] == "w2"
    assert nodes["conv1"].input[1] == "w1_half"


def test_nothing_between_two_float_nodes_is_rounded() -> None:
    """4097.25 has no float16; it must come through two nodes outside of the region as it is."""
    values = {"w": np.ones((1, 1, 1, 1), np.float32), "big": np.float32([4097.25]), "two": np.float32([2.0])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Sub", ["c", "big"], ["d"], name="far"),
        helper.make_node("Div", ["d", "two"], ["y"], name="halved"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (found,) = session(half_precision(model), 1).run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})
    assert found.item() == (1 - 4097.25) / 2


def test_a_weight_out_of_range_is_named_and_may_be_kept() -> None:
    model = small_graph(norm=False)
    huge = numpy_helper.from_array(weight(model, "w2") * 1e6, "w2")
    next(tensor for tensor in model.graph.initializer if tensor.name == "w2").CopyFrom(huge)
    with pytest.raises(ExportError, match=r"conv2.*w2"):
        half_precision(model)
    assert half_precision(model, ["conv2"])


def test_norms_are_one_product_and_one_sum() -> None:
    model = small_graph()
    spell_out_norms(model)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    factor = weight(model, "norm_factor").ravel()
    expected = weight(model, "scale").astype(float) / np.sqrt(weight(model, "variance").astype(float) + 1e-5)
    np.testing.assert_allclose(factor, expected, rtol=1e-6)
    (before,), (after,) = (session(m, 1).run(None, {"images": pictures()}) for m in (small_graph(), model))
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_shipped_networks_run_in_half() -> None:
    model = prepared(REPOSITORY / "pose_heads/1/model.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (2, 256, 192, 3)).astype(np.uint8)
    expected, found = (session(m, 1).run(None, {"crops": crops}) for m in (model, half_precision(model)))
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one - other).max() < 0.02
