"""If these fail, TensorRT is given types that it refuses, or computes in others than were measured."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.precision.calibration import CalibrationFeed
from export.precision.int8 import calibrate, quantize
from export.precision.regions import prepared, region, session
from export.tensorrt_plans.conversion import FOR_TENSORRT
from export.tensorrt_plans.graphs import cast_first, typed_graph
from tests.export.precision.graphs import pictures, small_graph

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def types(model: onnx.ModelProto) -> dict[str, int]:
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    found = {value.name: value.type.tensor_type.elem_type for value in (*known.graph.value_info, *known.graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in known.graph.initializer}


@pytest.mark.parametrize("name", ["pose_heads", "person_detector"])
def test_pixels_become_float_before_anything_else(name: str) -> None:
    model = prepared(REPOSITORY / name / "1/model.onnx")
    (picture,) = (value.name for value in model.graph.input)
    cast_first(model)
    readers = [node for node in model.graph.node if picture in node.input]
    assert [node.op_type for node in readers] == ["Cast"]
    assert TensorProto.UINT8 not in types(model).values()
    onnx.checker.check_model(model, full_check=True)


def test_the_answers_stay_the_same() -> None:
    (before,), (after,) = (
        session(model, 1).run(None, {"images": pictures()})
        for model in (small_graph(), typed_graph(small_graph(), "fp32"))
    )
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_int8_computes_the_rest_of_the_region_in_half() -> None:
    model = small_graph()
    ranges = calibrate(model, CalibrationFeed("images", pictures(16)))
    typed = typed_graph(quantize(model, ranges, ["conv1", "conv2"], FOR_TENSORRT), "int8")
    found, nodes = types(typed), {node.name: node for node in typed.graph.node}
    for name in ("conv1", "conv2"):
        assert {found[each] for each in nodes[name].input} == {TensorProto.FLOAT16}
    for node in typed.graph.node:
        # The last convolution's result leaves the region as it is.
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.name.startswith("c2"):
            assert found[node.input[1]] == TensorProto.FLOAT16, "a pair that is left in float splits the region"
    assert found["maps"] == TensorProto.FLOAT and found[nodes["softmax"].input[0]] == TensorProto.FLOAT
    assert next(opset.version for opset in typed.opset_import if opset.domain == "") >= 19
    (expected,), (answer,) = (session(m, 1).run(None, {"images": pictures()}) for m in (model, typed))
    assert 0 < np.abs(expected - answer).max() < 0.1


def test_every_quantized_convolution_reads_eight_bits_directly() -> None:
    """A cast between a pair and its convolution keeps TensorRT from computing in INT8."""
    model = small_graph()
    ranges = calibrate(model, CalibrationFeed("images", pictures(16)))
    typed = typed_graph(quantize(model, ranges, ["conv1", "conv2"], FOR_TENSORRT), "int8")
    makers = {name: node for node in typed.graph.node for name in node.output}
    for node in typed.graph.node:
        if node.op_type == "Conv":
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2


def test_the_docs_doubt_what_the_detector_has() -> None:
    """Operators of a detector that no longer ships would send whoever tries a plan to the wrong place."""
    text = " ".join((REPOSITORY.parent / "docs" / "precision.md").read_text().split())
    (named,) = re.findall(r"not known: (.*?) of the detector are the doubtful ones", text)
    operators = {node.op_type for node in onnx.load(REPOSITORY / "person_detector/1/model.onnx").graph.node}
    assert set(re.split(", | and ", named)) <= operators


def test_of_the_detector_boxes_stay_float() -> None:
    typed = typed_graph(prepared(REPOSITORY / "person_detector/1/model.onnx"), "fp16")
    found = types(typed)
    assert region(typed)
    for node in typed.graph.node:
        if node.op_type in ("NonMaxSuppression", "RoiAlign", "TopK", "Exp"):
            halves = [name for name in (*node.input, *node.output) if found.get(name) == TensorProto.FLOAT16]
            assert not halves, (node.name, halves)
