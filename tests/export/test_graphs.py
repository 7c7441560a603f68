"""If these fail, graphs do not load in the runtimes we name, or stored weights lose more than their last digits."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.checkpoints import ExportError
from export.graphs import export_graph, halve_weights


class Small(nn.Module):
    """Convolution with batch-norm, and a linear layer: what halving is about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.convolution(x)).relu().mean((2, 3)))


def run(model: Any, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export_graph(Small(), [torch.rand(2, 3, 8, 8)], ["x"], ["y"]).SerializeToString()


@pytest.fixture
def model(exported: bytes) -> Any:
    """An exported :class:`Small`, for each test to change."""
    return onnx.ModelProto.FromString(exported)


def test_graph_is_small_portable_and_free_in_the_batch_axis_only(model: Any) -> None:
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 10
    for value, rest in ((model.graph.input[0], [3, 8, 8]), (model.graph.output[0], [32])):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert [d.dim_value for d in others] == rest
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    for rows in (1, 2, 5):
        x = torch.rand(rows, 3, 8, 8)
        np.testing.assert_allclose(run(model, x=x.numpy())[0], Small().eval()(x).detach(), atol=1e-5)


def test_graph_does_not_name_files_of_this_machine(model: Any) -> None:
    assert b"/" not in b"".join(
        part.encode() for node in model.graph.node for part in (node.doc_string, str(node.metadata_props))
    )


def test_output_whose_length_depends_on_the_content_is_refused() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    with pytest.raises(ExportError, match="only the first axis may be free"):
        export_graph(Positive(), [torch.rand(2, 3)], ["x"], ["y"])


def test_halved_weights_are_float16_on_disk_and_rounded_once_in_use(model: Any) -> None:
    whole = len(model.SerializeToString())
    expected = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in expected.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size >= 1024 and values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    halve_weights(model)
    assert len(model.SerializeToString()) < 0.7 * whole
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], run(expected, x=x)[0], rtol=0, atol=1e-6)
    assert run(model, x=x)[0].dtype == np.float32


def test_weights_out_of_float16s_range_stay_whole(model: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "linear.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e7), tensor.name))
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    expected = run(model, x=x)[0]
    halve_weights(model)
    assert np.isfinite(run(model, x=x)[0]).all()
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-2, atol=1e-2 * float(np.abs(expected).max()))
