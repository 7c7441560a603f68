"""The graph that TensorRT is given: every type written out, so that a strongly typed network leaves nothing to chance.

TensorRT's own FP16 mode chose where to round, and ruined poses by rounding softmax and coordinates; since TensorRT 11
there is no such mode. INT8 likewise comes from Q/DQ pairs in the graph, with the ranges that ONNX Runtime measured.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from export.precision.half import half_precision

PlanPrecision = Literal["fp32", "fp16", "int8"]


def typed_graph(model: Any, precision: PlanPrecision, kept: Collection[str] = ()) -> Any:
    """A copy of a prepared graph in the types that the plan will compute in.

    Args:
        model: prepared; with Q/DQ pairs already for ``int8``.
        precision: ``int8`` computes in float16 what is not quantized.
        kept: nodes that stay float32.

    Raises:
        ExportError: a weight is out of float16's range.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    cast_first(copy)
    if precision == "fp32":
        return copy
    return half_precision(copy, kept)


def cast_first(model: Any) -> None:
    """Make float32 of uint8 inputs before anything else happens to them, in place.

    TensorRT takes uint8 at a network's border, and casts it; few other layers take it. Training's graphs transpose
    first, which moves a quarter of the bytes and is right elsewhere.
    """
    for value in model.graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        full = f"{value.name}_float"
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == value.name:
                    node.input[place] = full
        cast = helper.make_node("Cast", [value.name], [full], name=f"{value.name}_cast", to=TensorProto.FLOAT)
        nodes = [cast, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    # Written for other types.
    del model.graph.value_info[:]
