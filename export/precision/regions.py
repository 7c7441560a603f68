"""Which nodes of a graph may leave float32, and in which groups of them that is tried.

The region is what a network spends its time on: convolutions and matrix products, and what lies between them and
keeps the form of their maps. Everything else stays float32: the pixel normalisation, softmax and what follows it,
box decoding, suppression, RoIAlign. Box coordinates and indices need more digits than float16 has.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.checkpoints import ExportError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What may lie between weighted nodes without leaving the region, by ONNX operator; the first input is the map.
_BETWEEN = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Flatten", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Reshape", "Resize", "Sigmoid",
)  # fmt: skip
# Of quantized graphs; they keep company with what they quantize, weights included.
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Block:
    """Neighbouring weighted nodes, tried together.

    Attributes:
        name: ``first``, ``heads``, or a number in the order of the graph.
        nodes: names of the weighted nodes.
        share: of the network's multiply-adds.
    """

    name: str
    nodes: tuple[str, ...]
    share: float


def prepared(path: Path) -> Any:
    """The graph of ``model.onnx`` with constants folded (weights stored as float16 are float32 again) and shapes.

    Raises:
        ExportError: ONNX Runtime cannot prepare it.
    """
    with tempfile.TemporaryDirectory(prefix="tritonpose-") as folder:
        target = Path(folder) / "prepared.onnx"
        try:
            # Symbolic shape inference gives up on the detector's suppression ("Incomplete symbolic shape inference").
            quant_pre_process(str(path), str(target), skip_symbolic_shape=True)
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise ExportError(f"{path} cannot be prepared: {error}") from error
        model = onnx.load(target)
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"unnamed_{number}"  # ONNX asks for no names; here nodes are known by them
    return model


def region(model: Any) -> frozenset[str]:
    """Names of the nodes that may leave float32: weighted ones, and those that only pass maps between them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    below = _after_weights(model)
    found: set[str] = set()
    waiting = [node for node in model.graph.node if node.op_type in WEIGHTED]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found.add(node.name)
        for name in _maps(node):
            maker = makers.get(name)
            if maker is None:
                continue
            if maker.op_type in _PAIRS or (maker.op_type in _BETWEEN and maker.name in below):
                waiting.append(maker)
    return frozenset(found)


def blocks(model: Any, shares: Mapping[str, float], count: int) -> list[Block]:
    """The weighted nodes: the first, those whose maps leave the region, the rest in ``count`` runs of equal cost."""
    inside = region(model)
    order = [node for node in model.graph.node if node.op_type in WEIGHTED]
    if not order:
        raise ExportError("the graph has no convolution or matrix product")
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = {value.name for value in model.graph.output}

    def leaves(node: Any) -> bool:
        name = node.output[0]
        return name in results or any(reader.name not in inside for reader in readers.get(name, []))

    first = order[0].name
    heads = tuple(node.name for node in order[1:] if leaves(node))
    rest = [node.name for node in order[1:] if node.name not in heads]
    found = [Block("first", (first,), shares[first])]
    size = sum(shares[name] for name in rest) / max(1, count)
    run: list[str] = []
    for name in rest:
        run.append(name)
        if sum(shares[each] for each in run) >= size or name == rest[-1]:
            found.append(Block(str(len(found)), tuple(run), sum(shares[each] for each in run)))
            run = []
    if heads:
        found.append(Block("heads", heads, sum(shares[name] for name in heads)))
    return found


def costs(model: Any, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Each weighted node's share of all multiply-adds, from the shapes of one run on ``feed``."""
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in weights]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    wanted = [node.output[0] for node in nodes]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in present)
    shapes = dict(zip(wanted, (answer.shape for answer in session(copy).run(wanted, dict(feed))), strict=True))
    counts = {}
    for node in nodes:
        shape = shapes[node.output[0]]
        channels = shape[1] if node.op_type.startswith("Conv") else shape[-1]
        counts[node.name] = float(np.prod(shape)) / max(1, channels) * weights[node.input[1]]
    total = sum(counts.values()) or 1.0
    # A product of two maps has no weights to store small: it stays as it is and costs nothing here.
    return {node.name: counts.get(node.name, 0.0) / total for node in model.graph.node if node.op_type in WEIGHTED}


def session(model: Any, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU over a graph in memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )


def weighted(model: Any, blocks_kept: Sequence[Block]) -> list[str]:
    """Names of the weighted nodes that no block of ``blocks_kept`` holds, in the order of the graph."""
    kept = {name for block in blocks_kept for name in block.nodes}
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED and node.name not in kept]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what ONNX Runtime's tools print about their progress."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        yield


def _maps(node: Any) -> list[str]:
    """The inputs of a node that are maps or weights, not scales, shapes or limits."""
    if node.op_type in ("Add", "Concat", "Mul"):
        return list(node.input)
    return list(node.input[: 2 if node.op_type in WEIGHTED else 1])


def _after_weights(model: Any) -> set[str]:
    """Names of the nodes that weighted nodes lead to, themselves included; the graph is in order."""
    reached: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type in WEIGHTED or any(name in reached for name in node.input):
            reached.update(node.output)
            found.add(node.name)
    return found
