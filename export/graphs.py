"""Torch modules to ONNX graphs that ONNX Runtime, Triton and TensorRT load: fixed opset, only the batch axis free."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.checkpoints import ExportError

# Opset 18 and IR 10 are read by every ONNX Runtime since 1.18 and TensorRT since 10.0.
OPSET = 18
IR_VERSION = 10
BATCH = "batch"
# Weights below this many numbers stay float32: they hardly count in the file, and biases and anchors need the digits.
_SMALL = 1024
_LARGEST_HALF = 6.0e4
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def export_graph(module: nn.Module, inputs: Sequence[Any], names: Sequence[str], outputs: Sequence[str]) -> Any:
    """Export and simplify.

    Args:
        module: in evaluation mode afterwards.
        inputs: examples with a batch of 2: tensors, or lists of tensors.
        names: of the inputs, lists flattened.
        outputs: names of the outputs.

    Returns:
        ``onnx.ModelProto``, checked; its inputs and outputs have one free axis, the first.

    Raises:
        ExportError: an output's shape depends on more than the batch, or torch cannot export the module.
    """
    free = [[{0: torch.export.Dim.DYNAMIC}] * len(i) if isinstance(i, list) else {0: torch.export.Dim.DYNAMIC}
            for i in inputs]  # fmt: skip
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(), tuple(inputs), dynamo=True, dynamic_shapes=tuple(free), opset_version=OPSET,
                input_names=list(names), output_names=list(outputs), external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch cannot export {type(module).__name__}: {error}") from error
        assert program is not None
        model = onnxslim.slim(program.model_proto)
    _tidy(model)
    _require_batch_only(model, type(module).__name__)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tidy(model: Any) -> None:
    """Drop what only debugging needs (it names source files of this machine), and name the batch axis."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "tritonpose", "", ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    values = [*model.graph.input, *model.graph.output]
    # torch gives inputs that need not be equally long a symbol each; an output's must be one of them.
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols - {""}:
                dim.dim_param = BATCH
        del value.metadata_props[:]


def _require_batch_only(model: Any, name: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
        if not dims or dims[0] != BATCH or any(not isinstance(d, int) or d < 1 for d in dims[1:]):
            raise ExportError(f"{name}: {value.name} has shape {dims}; only the first axis may be free")


def halve_weights(model: Any) -> None:
    """Store large weights as float16 with a cast in front: half the file, the arithmetic stays float32.

    ONNX Runtime and TensorRT fold the casts once, when they load the graph. In place; weights out of float16's
    range stay as they are.
    """
    uses = Counter(name for node in model.graph.node for name in node.input)
    weights = {node.input[1] for node in model.graph.node if node.op_type in _WEIGHTED and len(node.input) > 1}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT or not uses[tensor.name]:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _SMALL or not np.abs(values).max() < _LARGEST_HALF:
            continue
        full = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{full}_half"))
        casts.append(helper.make_node("Cast", [f"{full}_half"], [full], name=f"{full}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
