"""A graph small enough to compute by hand: pixels in, two convolutions, a softmax over the picture out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
CHANNELS = 6


def small_graph(seed: int = 0, norm: bool = True) -> Any:
    """``images`` uint8 [N, 8, 8, 3] to ``maps`` float32 [N, 4, 64]; nodes are named after what they do."""
    rng = np.random.default_rng(seed)
    weights = {
        "mean": np.full((1, 3, 1, 1), 120.0, np.float32),
        "w1": (rng.normal(size=(CHANNELS, 3, 3, 3)) / 300).astype(np.float32),
        "b1": rng.normal(size=CHANNELS).astype(np.float32),
        "w2": rng.normal(size=(4, CHANNELS, 1, 1)).astype(np.float32),
        "b2": rng.normal(size=4).astype(np.float32),
        "scale": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "shift": rng.normal(size=CHANNELS).astype(np.float32),
        "running_mean": rng.normal(size=CHANNELS).astype(np.float32),
        "variance": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "flat": np.array([0, 4, -1], np.int64),
    }
    middle = "normed" if norm else "pooled"
    nodes = [
        helper.make_node("Transpose", ["images"], ["chw"], name="transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["chw"], ["full"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["full", "mean"], ["centred"], name="centre"),
        helper.make_node("Conv", ["centred", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node(
            "MaxPool", ["c1"], ["pooled"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]
        ),
        *(
            [
                helper.make_node(
                    "BatchNormalization", ["pooled", "scale", "shift", "running_mean", "variance"], ["normed"],
                    name="norm",
                )
            ]
            if norm
            else []
        ),
        helper.make_node("Relu", [middle], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c2"], name="conv2"),
        helper.make_node("Reshape", ["c2", "flat"], ["rows"], name="rows"),
        helper.make_node("Softmax", ["rows"], ["maps"], name="softmax", axis=-1),
    ]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 4, SIDE * SIDE])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def pictures(count: int = 6, seed: int = 1) -> Any:
    """uint8 [count, 8, 8, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def weight(model: Any, name: str) -> Any:
    """An initializer's values."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)
