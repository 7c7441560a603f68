"""Small real model repositories for the engine tests: ONNX graphs of known arithmetic, and their config.pbtxt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.engines.base import Array

Shape = Sequence[int | str]
# name -> (ONNX element type, shape without the batch axis; text marks an axis of free length)
Signature = Mapping[str, tuple[int, Shape]]

FLOAT = TensorProto.FLOAT
UINT8 = TensorProto.UINT8
INT64 = TensorProto.INT64

ROW: Signature = {"x": (FLOAT, [3])}
OUT: Signature = {"y": (FLOAT, [3])}
JOIN = "dynamic_batching { }\n"
LONG = 100_000_000  # turns of the slow model: minutes, so that time limits mean something on a busy machine too

_TRITON: dict[int, str] = {
    FLOAT: "TYPE_FP32",
    UINT8: "TYPE_UINT8",
    INT64: "TYPE_INT64",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.FLOAT16: "TYPE_FP16",
}


def rows(count: int, start: float = 0) -> Array:
    """Rows of three numbers that count upwards from ``start``."""
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def turning(turns: int) -> dict[str, Array]:
    """Input of the slow model: a microsecond or two a turn, ten on a busy machine."""
    return {"x": np.ones((1, 64), np.float32), "turns": np.full((1, 1), turns, np.int64)}


def tensors_text(kind: str, signature: Signature) -> str:
    """The ``input [...]`` or ``output [...]`` block of a config."""
    blocks = [
        f'{{ name: "{name}" data_type: {_TRITON[element]} '
        f"dims: [{', '.join(str(-1 if isinstance(d, str) else d) for d in shape)}] }}"
        for name, (element, shape) in signature.items()
    ]
    return f"{kind} [{', '.join(blocks)}]\n"


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Signature,
    outputs: Signature,
    *,
    batch: Shape = ("N",),
    initializers: Sequence[onnx.TensorProto] = (),
) -> None:
    """Write a graph; ``batch`` is what comes before the shapes of the signatures (empty: no batch axis)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, e, [*batch, *shape]) for name, (e, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, e, [*batch, *shape]) for name, (e, shape) in outputs.items()],
        initializer=list(initializers),
    )
    # An older IR and opset than the newest, so that any supported ONNX Runtime reads it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


class Repository:
    """A model repository under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def network(
        self,
        name: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: Signature,
        outputs: Signature,
        *,
        max_batch_size: int = 8,
        extra: str = 'platform: "onnxruntime_onnx"\n',
        version: int = 1,
        initializers: Sequence[onnx.TensorProto] = (),
    ) -> Path:
        """Add a network; gives the config's path. ``extra`` is the rest of the config."""
        batch = ("N",) if max_batch_size else ()
        path = self.root / name / str(version) / "model.onnx"
        write_onnx(path, nodes, inputs, outputs, batch=batch, initializers=initializers)
        return self.config(
            name,
            f"max_batch_size: {max_batch_size}\n"
            + tensors_text("input", inputs)
            + tensors_text("output", outputs)
            + extra,
        )

    def affine(
        self, name: str, factor: float, offset: float = 0.0, *, extra: str = "", max_batch_size: int = 8
    ) -> Path:
        """``y = factor * x + offset`` on rows of 3."""
        nodes = [
            helper.make_node("Constant", [], ["factor"], value_float=float(factor)),
            helper.make_node("Constant", [], ["offset"], value_float=float(offset)),
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["y"]),
        ]
        text = 'platform: "onnxruntime_onnx"\n' + extra
        rows = {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])}
        return self.network(name, nodes, *rows, max_batch_size=max_batch_size, extra=text)

    def add(self, name: str = "add") -> Path:
        """``sum = a + b`` on rows of 3."""
        nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
        return self.network(name, nodes, {"a": (FLOAT, [3]), "b": (FLOAT, [3])}, {"sum": (FLOAT, [3])})

    def slow(self, name: str = "slow", *, extra: str = "", max_batch_size: int = 8) -> Path:
        """Turns the wheel ``turns[0]`` times: a run as long as the test wants. Warm-up makes it turn 0 times."""
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("Mul", ["carried", "half"], ["halved"]),
                helper.make_node("Add", ["halved", "half"], ["carried_on"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("turn", INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried", FLOAT, ["N", 64]),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried_on", FLOAT, ["N", 64]),
            ],
            initializer=[helper.make_tensor("half", FLOAT, [], [0.5])],
        )
        nodes = [
            helper.make_node("ReduceMax", ["turns"], ["count"], keepdims=0),
            helper.make_node("Constant", [], ["go"], value=helper.make_tensor("true", TensorProto.BOOL, [], [True])),
            helper.make_node("Loop", ["count", "go", "x"], ["y"], body=body),
        ]
        return self.network(
            name,
            nodes,
            {"x": (FLOAT, [64]), "turns": (INT64, [1])},
            {"y": (FLOAT, [64])},
            extra='platform: "onnxruntime_onnx"\n' + extra,
            max_batch_size=max_batch_size,
        )

    def slow_twice(self, name: str = "e") -> None:
        """The slow model, and an ensemble that runs it twice, one after the other."""
        self.slow()
        steps = [
            ("slow", {"x": "x", "turns": "turns"}, {"y": "once"}),
            ("slow", {"x": "once", "turns": "turns"}, {"y": "y"}),
        ]
        self.ensemble(name, steps, {"x": (FLOAT, [64]), "turns": (INT64, [1])}, {"y": (FLOAT, [64])})

    def ensemble(
        self,
        name: str,
        steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
        inputs: Signature,
        outputs: Signature,
        *,
        max_batch_size: int = 8,
        extra: str = "",
    ) -> Path:
        """Add an ensemble of steps (model, input map, output map)."""
        text = ""
        for model, input_map, output_map in steps:
            maps = [f'input_map {{ key: "{k}" value: "{v}" }}' for k, v in input_map.items()]
            maps += [f'output_map {{ key: "{k}" value: "{v}" }}' for k, v in output_map.items()]
            text += f'  step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}\n'
        (self.root / name / "1").mkdir(parents=True, exist_ok=True)
        return self.config(
            name,
            f'platform: "ensemble"\nmax_batch_size: {max_batch_size}\n'
            + tensors_text("input", inputs)
            + tensors_text("output", outputs)
            + f"ensemble_scheduling {{\n{text}}}\n"
            + extra,
        )

    def config(self, name: str, text: str) -> Path:
        """Write the config of a model."""
        path = self.root / name / "config.pbtxt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'name: "{name}"\n{text}', encoding="utf-8")
        return path
