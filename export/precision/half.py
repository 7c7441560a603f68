"""Float16 for the part of a graph that bears it: inputs, outputs and everything outside the region stay as they are.

Written here and not taken from ``onnxruntime.transformers.float16``: that converter rounds every value between two
nodes that were asked to stay float32 to float16 and back. In the detector that is 146 roundings of box coordinates
and indices, and a float16 counts by quarters from 256 on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.checkpoints import ExportError
from export.precision.regions import region

_LARGEST_HALF = 6.5e4
# The inputs that follow the maps' type, where not all do: shapes, sizes and eight-bit values are what they are.
_FOLLOWING = {"Resize": (0,), "Reshape": (0,), "QuantizeLinear": (0, 1), "DequantizeLinear": (1,)}
# The first opset whose quantization takes float16.
_HALF_PAIRS = 19


def half_precision(model: Any, kept: Collection[str] = ()) -> Any:
    """A copy of the graph whose region computes in float16.

    Args:
        model: prepared, ``onnx.ModelProto``.
        kept: nodes of the region that stay float32.

    Raises:
        ExportError: a weight is out of float16's range; name its node in ``kept``.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    spell_out_norms(result)
    chosen = region(result) - set(kept)
    return _Conversion(result, chosen).run()


def spell_out_norms(model: Any) -> None:
    """Batch normalisations as one product and one sum, computed in float64. In place.

    What is left of them stands before an activation and cannot be folded into a convolution; their variances, small
    as they are, have too few digits in float16.
    """
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or any(name not in values for name in node.input[1:]):
            nodes.append(node)
            continue
        scale, bias, mean, variance = (numpy_helper.to_array(values[n]).astype(np.float64) for n in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        parts = {f"{node.name}_factor": factor, f"{node.name}_shift": bias - mean * factor}
        model.graph.initializer.extend(
            numpy_helper.from_array(part.astype(np.float32).reshape(-1, 1, 1), name) for name, part in parts.items()
        )
        product = f"{node.output[0]}_scaled"
        factor_name, shift_name = parts
        nodes.append(helper.make_node("Mul", [node.input[0], factor_name], [product], name=f"{node.name}_mul"))
        nodes.append(helper.make_node("Add", [product, shift_name], [node.output[0]], name=node.name))
    _replace_nodes(model, nodes)


class _Conversion:
    """One pass over the nodes in their order; casts are made once for each tensor and direction."""

    def __init__(self, model: Any, chosen: frozenset[str]) -> None:
        self.model, self.chosen = model, chosen
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.results = {value.name for value in model.graph.output}
        self.nodes: list[Any] = []
        self.halves: dict[str, str] = {}
        self.made: set[str] = set()

    def run(self) -> Any:
        for node in list(self.model.graph.node):
            if node.name in self.chosen:
                self._convert(node)
            else:
                self._read_full(node)
        for name in sorted(self.results & self.made):
            self._widen(name)
        _replace_nodes(self.model, self.nodes)
        # Shapes are right, types are not: whoever loads the graph infers them anew.
        del self.model.graph.value_info[:]
        _drop_unused(self.model)
        if any(node.op_type == "QuantizeLinear" and node.name in self.chosen for node in self.nodes):
            for opset in self.model.opset_import:
                if opset.domain == "":
                    opset.version = max(opset.version, _HALF_PAIRS)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _convert(self, node: Any) -> None:
        following = _FOLLOWING.get(node.op_type, range(len(node.input)))
        for place, name in enumerate(node.input):
            if name and place in following:
                node.input[place] = self._half(name, node)
        if node.op_type == "QuantizeLinear":
            self.nodes.append(node)
            return
        for place, name in enumerate(node.output):
            self.halves[name] = f"{name}_half"
            self.made.add(name)
            node.output[place] = f"{name}_half"
        self.nodes.append(node)

    def _half(self, name: str, node: Any) -> str:
        if name not in self.halves:
            self.halves[name] = f"{name}_half"
            tensor = self.weights.get(name)
            if tensor is None:
                self.nodes.append(_cast(name, f"{name}_half", TensorProto.FLOAT16))
            elif tensor.data_type != TensorProto.FLOAT:
                self.halves[name] = name
            else:
                values = numpy_helper.to_array(tensor)
                if values.size and not np.abs(values).max() < _LARGEST_HALF:
                    raise ExportError(f"node {node.name!r}: weight {name!r} is out of float16's range: keep it float")
                self.model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        return self.halves[name]

    def _read_full(self, node: Any) -> None:
        for name in node.input:
            if name in self.made:
                self._widen(name)
        self.nodes.append(node)

    def _widen(self, name: str) -> None:
        """The float32 of a tensor that a converted node makes, under its old name."""
        self.nodes.append(_cast(f"{name}_half", name, TensorProto.FLOAT))
        self.made.discard(name)


def _cast(source: str, target: str, to: int) -> Any:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
