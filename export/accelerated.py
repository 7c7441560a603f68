"""The graphs of networks that TensorRT runs inside Triton's ONNX Runtime back end.

Their configs name no precision: ONNX Runtime then builds a strongly typed network (with TensorRT 9 and later), which
computes in the types of the graph and can be compared on any machine. Pixels are cast before anything else, because
a node that TensorRT refuses splits the graph, and the part behind it has an input without a profile: the model does
not load.

Engines are cached under the graph's name and a hash of the names inside, never of the weights
(github.com/microsoft/onnxruntime/issues/6455): a retrained network would be served with the old one's engine. So the
graph's name is a digest of all that is in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx

from export.precision.regions import prepared
from export.tensorrt_plans.graphs import typed_graph

_DIGITS = 16


def accelerate_graphs(folder: Path, config: Any) -> None:
    """Rewrite the graph of every version of a network in float16, in place; one that was rewritten already stays.

    Args:
        folder: the model's, with version folders.
        config: its ``ModelConfig`` message.

    Raises:
        ExportError: a graph cannot be converted.
    """
    for path in sorted(folder.glob(f"[1-9]*/{config.default_model_filename or 'model.onnx'}")):
        if is_accelerated_graph(path):
            continue
        graph = typed_graph(prepared(path), "fp16")
        graph.graph.name = _digest(graph)
        path.write_bytes(graph.SerializeToString(deterministic=True))


def is_accelerated_graph(path: Path) -> bool:
    """Whether a graph is named after what is in it."""
    graph = onnx.load(path)
    return bool(graph.graph.name == _digest(graph))


def _digest(model: Any) -> str:
    nameless = onnx.ModelProto()
    nameless.CopyFrom(model)
    nameless.graph.name = ""
    return "of_" + hashlib.sha256(nameless.SerializeToString(deterministic=True)).hexdigest()[:_DIGITS]
