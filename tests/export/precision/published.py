"""A repository of three models around the small graph, written by the export's own publisher."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, helper

from export.configs import NETWORK_QUEUE, EnsembleStep, ModelPlan
from export.repository import publish, staging_folder, write_models
from service.engines.base import TensorSpec
from tests.export.precision.graphs import SIDE, small_graph

CROPS = TensorSpec("images", "uint8", (SIDE, SIDE, 3))
MAPS = TensorSpec("maps", "float32", (4, SIDE * SIDE))


def tiny_repository(folder: Path) -> Path:
    """``heads``, ``fusion`` (passes maps on) and the ensemble ``pose`` over both."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["maps"], ["out"])], "g",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 4, SIDE * SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4, SIDE * SIDE])],
    )  # fmt: skip
    identity = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    out = TensorSpec("out", "float32", MAPS.shape)
    plans = [
        ModelPlan("heads", (CROPS,), (MAPS,), 8, {"kind": "part"}, small_graph(), NETWORK_QUEUE),
        ModelPlan("fusion", (MAPS,), (out,), 8, {"kind": "part"}, identity),
        ModelPlan(
            "pose", (CROPS,), (out,), 8, {"kind": "pose"},
            steps=[
                EnsembleStep("heads", {"images": "images"}, {"maps": "maps"}),
                EnsembleStep("fusion", {"maps": "maps"}, {"out": "out"}),
            ],
        ),
    ]  # fmt: skip
    with staging_folder(folder) as staged:
        write_models(staged, plans, 1)
        publish(staged, folder, 2)
    return folder
