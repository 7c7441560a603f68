"""A small model repository by the contract, of fixed graphs: three boxes in every picture, joints at peaks of noise.

Load tests and the bench then run against the real service in a second, whatever the shipped models are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.skeletons import COCO17

SIDE, WIDTH, HEIGHT, STRIDE = 128, 48, 64, 4
JOINTS = len(COCO17)
# x1 y1 x2 y2 in letterbox pixels, and scores; the last one is padding.
BOXES = np.array([[4, 8, 40, 90], [44, 4, 84, 94], [88, 10, 124, 92], [0, 0, 0, 0]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7, 0.0], np.float32)
_TYPES = {"uint8": (TensorProto.UINT8, "TYPE_UINT8"), "float32": (TensorProto.FLOAT, "TYPE_FP32")}

Tensor = tuple[str, str, list[int]]


def write_repository(root: Path) -> Path:
    """Write detector, heads, fusion and the ensembles ``pose`` and ``pose_flip`` (here the same as ``pose``)."""
    maps: list[Tensor] = [
        (f"heatmaps_{radius}", "float32", [JOINTS, HEIGHT // STRIDE, WIDTH // STRIDE])
        for radius in ("large", "medium", "small")
    ]
    crops: Tensor = ("crops", "uint8", [HEIGHT, WIDTH, 3])
    weights: Tensor = ("fusion_weights", "float32", [3])
    keypoints: Tensor = ("keypoints", "float32", [JOINTS, 3])
    _write_detector(root)
    _write_heads(root, crops, maps)
    _write_fusion(root, [*maps, weights], keypoints)
    pose = {
        "skeleton": COCO17.to_json(),
        "input_width": str(WIDTH),
        "input_height": str(HEIGHT),
        "radii": "large,medium,small",
        "detector": "person_detector",
        "padding": "1.25",
        "score_threshold": "0.3",
    }
    steps = [
        ("pose_heads", ["crops"], [name for name, _, _ in maps]),
        ("pose_fusion", [*(name for name, _, _ in maps), "fusion_weights"], ["keypoints"]),
    ]
    _write_config(
        root, "pose", [crops, weights], [keypoints], {"kind": "pose", "flip_model": "pose_flip", **pose}, steps
    )
    _write_config(root, "pose_flip", [crops, weights], [keypoints], {"kind": "pose_flip", **pose}, steps)
    return root


def _write_detector(root: Path) -> None:
    images: Tensor = ("images", "uint8", [SIDE, SIDE, 3])
    outputs: list[Tensor] = [("boxes", "float32", list(BOXES.shape)), ("scores", "float32", [len(SCORES)])]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "last"], ["zeros2"]),
        helper.make_node("Unsqueeze", ["zeros2", "last"], ["zeros3"]),
        helper.make_node("Add", ["zeros3", "fixed_boxes"], ["boxes"]),
        helper.make_node("Add", ["zeros2", "fixed_scores"], ["scores"]),
    ]
    constants = {
        "zero": np.zeros(1, np.float32),
        "last": np.array([-1]),
        "fixed_boxes": BOXES[None],
        "fixed_scores": SCORES[None],
    }
    _write_network(root, "person_detector", nodes, [images], outputs, constants)
    parameters = {"kind": "detector", "input_size": str(SIDE), "box_threshold": "0.3"}
    _write_config(root, "person_detector", [images], outputs, parameters)


def _write_heads(root: Path, crops: Tensor, maps: list[Tensor]) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    constants = {}
    for name, _, _ in maps:
        constants[f"{name}_kernel"] = rng.normal(0, 0.002, (JOINTS, 3, STRIDE, STRIDE)).astype(np.float32)
        kernel = ["planes", f"{name}_kernel"]
        nodes.append(helper.make_node("Conv", kernel, [f"{name}_raw"], strides=[STRIDE, STRIDE]))
        nodes.append(helper.make_node("Sigmoid", [f"{name}_raw"], [name]))
    _write_network(root, "pose_heads", nodes, [crops], maps, constants)
    _write_config(root, "pose_heads", [crops], maps, {"kind": "part"})


def _write_fusion(root: Path, inputs: list[Tensor], keypoints: Tensor) -> None:
    """Product of powers, then the place and height of its peak."""
    columns = WIDTH // STRIDE
    nodes = [helper.make_node("Split", ["fusion_weights", "ones3"], ["w0", "w1", "w2"], axis=1)]
    for k, (name, _, _) in enumerate(inputs[:3]):
        nodes.append(helper.make_node("Reshape", [f"w{k}", "as_maps"], [f"v{k}"]))
        nodes.append(helper.make_node("Pow", [name, f"v{k}"], [f"p{k}"]))
    nodes += [
        helper.make_node("Mul", ["p0", "p1"], ["p01"]),
        helper.make_node("Mul", ["p01", "p2"], ["product"]),
        helper.make_node("Reshape", ["product", "as_rows"], ["rows"]),
        helper.make_node("ArgMax", ["rows"], ["peak"], axis=2, keepdims=1),
        helper.make_node("ReduceMax", ["rows"], ["score"], axes=[2], keepdims=1),
        helper.make_node("Mod", ["peak", "columns"], ["column"]),
        helper.make_node("Div", ["peak", "columns"], ["row"]),
        helper.make_node("Concat", ["column", "row"], ["cell"], axis=2),
        helper.make_node("Cast", ["cell"], ["cell_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cell_float", "stride"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["point"]),
        helper.make_node("Concat", ["point", "score"], ["keypoints"], axis=2),
    ]
    constants = {
        "ones3": np.array([1, 1, 1]),
        "as_maps": np.array([-1, 1, 1, 1]),
        "as_rows": np.array([0, 0, -1]),
        "columns": np.array([columns]),
        "stride": np.array([STRIDE], np.float32),
        "half": np.array([STRIDE / 2 - 0.5], np.float32),
    }
    _write_network(root, "pose_fusion", nodes, inputs, [keypoints], constants)
    _write_config(root, "pose_fusion", inputs, [keypoints], {"kind": "part"})


def _write_network(
    root: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[Tensor],
    outputs: list[Tensor],
    constants: dict[str, np.ndarray],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, _TYPES[kind][0], ["N", *shape]) for n, kind, shape in inputs],
        [helper.make_tensor_value_info(n, _TYPES[kind][0], ["N", *shape]) for n, kind, shape in outputs],
        initializer=[numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def _write_config(
    root: Path,
    name: str,
    inputs: list[Tensor],
    outputs: list[Tensor],
    parameters: dict[str, str],
    steps: list[tuple[str, list[str], list[str]]] | None = None,
) -> None:
    lines = ["max_batch_size: 16", 'platform: "ensemble"' if steps else 'platform: "onnxruntime_onnx"']
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, dtype, shape in tensors:
            lines.append(f'{kind} {{ name: "{tensor}" data_type: {_TYPES[dtype][1]} dims: {shape} }}')
    for key, value in parameters.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{escaped}" }} }}')
    if steps:
        lines.append("ensemble_scheduling {")
        for model, taken, given in steps:
            lines.append(f'  step {{ model_name: "{model}" model_version: -1')
            lines += [f'    input_map {{ key: "{t}" value: "{t}" }}' for t in taken]
            lines += [f'    output_map {{ key: "{t}" value: "{t}" }}' for t in given]
            lines.append("  }")
        lines.append("}")
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text("\n".join(lines) + "\n")
