"""If these fail, weights lose their own scales, ranges miss what was seen, or TensorRT is given what it refuses."""

from typing import Any

import numpy as np
import pytest

from export.checkpoints import ExportError
from export.precision.calibration import CalibrationFeed
from export.precision.int8 import Int8Options, calibrate, quantize
from export.precision.regions import session
from tests.export.precision.graphs import pictures, small_graph, weight


def ranges(model: Any) -> Any:
    return calibrate(model, CalibrationFeed("images", pictures(32)))


def test_ranges_are_those_of_the_pictures() -> None:
    model = small_graph(norm=False)
    found = ranges(model)["centred"].range_value
    centred = pictures(32).astype(np.float32) - 120
    assert [float(value.item()) for value in found] == [centred.min(), centred.max()]


def test_every_output_channel_has_its_own_scale() -> None:
    model = small_graph(norm=False)
    result = quantize(model, ranges(model), ["conv1"], Int8Options())
    stored, scales = weight(result, "w1_quantized"), weight(result, "w1_scale")
    full = weight(model, "w1")
    np.testing.assert_allclose(scales, np.abs(full).max((1, 2, 3)) / 127, rtol=1e-5)
    assert stored.dtype == np.int8
    # Rounded to the nearest step, by hand.
    np.testing.assert_array_equal(stored, np.clip(np.rint(full / scales[:, None, None, None]), -127, 127))


def test_answers_are_as_near_as_eight_bits_allow() -> None:
    model = small_graph()
    result = quantize(model, ranges(model), ["conv1", "conv2"], Int8Options())
    (expected,), (found,) = (session(m, 1).run(None, {"images": pictures(8)}) for m in (model, result))
    assert 0 < np.abs(found - expected).max() < 0.1
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.8


def test_only_the_nodes_asked_for_are_quantized() -> None:
    model = small_graph()
    result = quantize(model, ranges(model), ["conv2"], Int8Options())
    names = {tensor.name for tensor in result.graph.initializer}
    assert "w1" in names and "w2_quantized" in names and "w2" not in names
    with pytest.raises(ExportError, match="nothing is left"):
        quantize(model, ranges(model), [], Int8Options())


def test_tensorrt_gets_symmetric_pairs_and_float_biases() -> None:
    model = small_graph(norm=False)
    result = quantize(model, ranges(model), ["conv1", "conv2"], Int8Options("s8", for_tensorrt=True))
    points = [tensor for tensor in result.graph.initializer if tensor.name.endswith("zero_point")]
    assert points and all(not weight(result, tensor.name).any() for tensor in points)
    assert all(weight(result, tensor.name).dtype == np.int8 for tensor in points)
    assert {"b1", "b2", "w1", "w2"} <= {tensor.name for tensor in result.graph.initializer}


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_ranges_lie_within_those_of_all_values(method: Any) -> None:
    model = small_graph(norm=False)
    least, most = (value.item() for value in ranges(model)["centred"].range_value)
    found = calibrate(model, CalibrationFeed("images", pictures(32)), method)["centred"].range_value
    low, high = (value.item() for value in found)
    assert least <= low < high <= most + 1e-3
