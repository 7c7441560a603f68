"""``python -m export quantize``: networks of a repository in FP16 or INT8, compared with the float ones, published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from export.checkpoints import ExportError
from export.installation import differences_table
from export.parity import Difference
from export.precision.calibration import CalibrationFeed, Pictures, load_pictures, network_input
from export.precision.comparison import Replaced, Run, answers_of, ask, compare, questions
from export.precision.half import half_precision
from export.precision.int8 import Int8Options, calibrate, quantize
from export.precision.regions import WEIGHTED, Block, blocks, costs, prepared, session, weighted
from export.precision.sensitivity import Finding, keep_in_float, scan
from export.precision.variants import Converted, link_view, stage_variant
from export.repository import publish, staging_folder
from service.engines.base import Array, Tensors
from service.engines.config import ModelConfig, RepositoryError, read_repository
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings
from service.errors import ServiceError

Precision = Literal["fp16", "int8"]
# Pictures that a block is tried on, and blocks beside the first and the heads: 18 trials of 16 pictures take about a
# minute of processor time.
_SCAN_PICTURES = 16
_SCAN_BLOCKS = 16


@dataclass(frozen=True)
class QuantizeRequest:
    """What one run of the command line asks for; see ``python -m export quantize --help``.

    Attributes:
        into: the sibling repository; None for a new version in the repository itself.
        models: networks to convert; empty for all that take pictures.
        float_nodes: names of nodes that stay in float; None lets measurement choose (INT8) or keeps none (FP16).
        float_share: most of a network's multiply-adds that the choice may leave in float.
        count: pictures to calibrate with, and as many others to compare on.
    """

    repository: Path
    into: Path | None
    precision: Precision
    models: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] | None = None
    float_share: float = 0.1
    options: Int8Options = field(default_factory=Int8Options)
    data: tuple[Path, Path] | None = None
    count: int = 64
    keep: int = 2


def run_quantize(request: QuantizeRequest, console: Console) -> None:
    """Convert, compare, publish: all networks of the request, or none.

    Raises:
        ExportError: with the reason; the repository is as it was.
    """
    configs = read_configs(request.repository)
    names = chosen_networks(configs, request.models)
    target = request.into or request.repository
    whole = target.resolve() != request.repository.resolve()
    pictures = load_pictures(request.data, request.count)
    console.print(f"{', '.join(names)} to {request.precision}; pictures of {pictures.calibration.name}")
    with staging_folder(target) as staged:
        converted = {name: _convert(configs, name, request, pictures, console) for name in names}
        stage_variant(configs, converted, staged, target, whole)
        found = check_staged(request.repository, staged, configs, names, pictures, request.count, request.precision)
        console.print(differences_table(found))
        refuse_failures(found, request.precision)
        publish(staged, target, request.keep)
    for name in names:
        before, after = configs[name].onnx, converted[name].model
        assert before is not None
        console.print(f"{name}: {before.stat().st_size / 1e6:.1f} MB before, {len(after) / 1e6:.1f} MB in {target}")


def read_configs(repository: Path) -> dict[str, ModelConfig]:
    """All models of a repository. Raises ExportError."""
    try:
        return read_repository(repository)
    except (RepositoryError, OSError) as error:
        raise ExportError(str(error)) from error


def chosen_networks(configs: Mapping[str, ModelConfig], wanted: Sequence[str]) -> list[str]:
    """The networks to convert: those named, else all that take pictures and have weights. Raises ExportError."""
    unknown = [name for name in wanted if name not in configs or configs[name].onnx is None]
    if unknown:
        known = sorted(name for name, config in configs.items() if config.onnx is not None)
        raise ExportError(f"no networks {unknown} in the repository; there are {', '.join(known)}")
    found = list(wanted) or [name for name, config in sorted(configs.items()) if _is_network(config)]
    if not found:
        raise ExportError("no network of the repository takes pictures: nothing to convert")
    return found


def _is_network(config: ModelConfig) -> bool:
    pictures = [spec.dtype == "uint8" and len(spec.shape) == 3 for spec in config.metadata.inputs]
    if config.onnx is None or pictures != [True]:
        return False
    graph = onnx.load(config.onnx).graph
    return any(node.op_type in WEIGHTED for node in graph.node)


def _convert(
    configs: Mapping[str, ModelConfig], name: str, request: QuantizeRequest, pictures: Pictures, console: Console
) -> Converted:
    path = configs[name].onnx
    assert path is not None
    model = prepared(path)
    nodes = {node.name for node in model.graph.node}
    given = [node for node in request.float_nodes or () if node in nodes]
    if request.float_nodes and len(configs) and not given and len(request.models) == 1:
        raise ExportError(f"{name} has none of the nodes {list(request.float_nodes)}")
    if request.precision == "fp16":
        return Converted(
            half_precision(model, given).SerializeToString(deterministic=True),
            _card("float16 arithmetic", given, pictures, ()), {"precision": "fp16"},
        )  # fmt: skip
    result, kept, findings = quantized_network(
        request.repository, configs, name, model, pictures, request.options, request.count,
        request.float_share, None if request.float_nodes is None else given, console,
    )  # fmt: skip
    how = f"static INT8 (activations {request.options.activations}, ranges by {request.options.method})"
    return Converted(
        result.SerializeToString(deterministic=True), _card(how, kept, pictures, findings), {"precision": "int8"}
    )


def quantized_network(
    repository: Path,
    configs: Mapping[str, ModelConfig],
    name: str,
    model: Any,
    pictures: Pictures,
    options: Int8Options,
    count: int,
    float_share: float,
    float_nodes: Sequence[str] | None,
    console: Console,
) -> tuple[Any, list[str], list[Finding]]:
    """One network in INT8: calibrated, its sensitive blocks found by measurement and kept in float.

    Args:
        repository, configs: where the float network and its ensembles are.
        name: of the network.
        model: its prepared graph.
        pictures: for ranges and trials.
        options: see :class:`Int8Options`.
        count: pictures for the ranges.
        float_share: most of the multiply-adds that may stay in float.
        float_nodes: what stays in float; None to find out.
        console: gets the table of blocks.

    Returns:
        the graph, names of the weighted nodes that are in float, and the findings (none with ``float_nodes``).
    """
    metadata = configs[name].metadata
    pixels = network_input(metadata, pictures.calibration, count)
    tensor = metadata.inputs[0].name
    ranges = calibrate(model, CalibrationFeed(tensor, pixels), options.method)
    if float_nodes is not None:
        chosen = [node for node in weighted(model, ()) if node not in float_nodes]
        return quantize(model, ranges, chosen, options), list(float_nodes), []
    parts = blocks(model, costs(model, {tensor: pixels[:1]}), _SCAN_BLOCKS)
    outputs = [spec.name for spec in metadata.outputs]

    def alone(block: Block) -> Run:
        return runner(quantize(model, ranges, block.nodes, options), outputs)

    findings = asyncio.run(_scan(repository, configs, name, parts, alone, pictures, console))
    kept = keep_in_float(findings, float_share)
    console.print(_scan_table(name, findings, kept))
    result = quantize(model, ranges, weighted(model, kept), options)
    return result, [node for block in kept for node in block.nodes], findings


def runner(model: Any, outputs: Sequence[str]) -> Run:
    """Runs a graph on ONNX Runtime, outputs by name."""
    loaded = session(model)

    def run(inputs: Tensors) -> dict[str, Array]:
        return dict(zip(outputs, loaded.run(list(outputs), dict(inputs)), strict=True))

    return run


async def _scan(
    repository: Path, configs: Mapping[str, ModelConfig], name: str, parts: Sequence[Block],
    alone: Callable[[Block], Run], pictures: Pictures, console: Console,
) -> list[Finding]:  # fmt: skip
    wanted = questions(configs, [name], pictures.comparison, _SCAN_PICTURES)
    engine = EmbeddedEngine(repository, RuntimeSettings())
    await engine.start()
    try:
        expected = await ask(engine, wanted)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{name}: blocks in INT8 one at a time", total=len(parts))
            return await scan(
                parts, alone, lambda run: Replaced(engine, configs, {name: run}), wanted, expected,
                partial(progress.advance, task),
            )  # fmt: skip
    finally:
        await engine.close()


def check_staged(
    repository: Path, staged: Path, configs: Mapping[str, ModelConfig], names: Sequence[str],
    pictures: Pictures, count: int, precision: Precision,
) -> list[Difference]:  # fmt: skip
    """Load the staged models as the service would, and compare their answers with the float repository's.

    Raises:
        ExportError: they do not load or do not run.
    """
    wanted = questions(configs, names, pictures.comparison, count)

    with staging_folder(staged) as view:
        link_view(configs, staged, view)
        try:
            expected, found = asyncio.run(answers_of(repository, wanted)), asyncio.run(answers_of(view, wanted))
        except ServiceError as error:
            raise ExportError(f"the converted models do not run: {error}") from error
    return compare(wanted, expected, found, precision)


def refuse_failures(found: Sequence[Difference], precision: str) -> None:
    """Raises ExportError when a comparison fails."""
    if failed := [d for d in found if not d.passes]:
        told = "; ".join(
            f"{d.model}, {d.count} {d.what}: median {d.median:.3f} px (limit {d.limits.median:g}), "
            f"99th percentile {d.p99:.2f} px ({d.limits.p99:g}), scores {d.score:.3f} ({d.limits.score:g})"
            for d in failed
        )
        raise ExportError(f"in {precision} the networks do not answer as in float: {told}")


def _scan_table(name: str, findings: Sequence[Finding], kept: Sequence[Block]) -> Table:
    table = Table("block", "nodes", "multiply-adds", "harm alone, px", "", box=SIMPLE, title=name)
    for finding in findings:
        block = finding.block
        nodes = block.nodes[0] + (f" to {block.nodes[-1]}" if len(block.nodes) > 1 else "")
        table.add_row(block.name, nodes, f"{block.share:.1%}", f"{finding.harm:.3f}", "float" if block in kept else "")
    return table


def _card(how: str, kept: Sequence[str], pictures: Pictures, findings: Sequence[Finding]) -> str:
    lines = [
        "## Precision",
        "",
        f"Converted by `python -m export quantize`: {how}; pictures of {pictures.calibration.name}.",
        f"Kept in float32 beside the input, softmax and decoding: {', '.join(f'`{n}`' for n in kept) or 'nothing'}.",
        "",
    ]
    if findings:
        lines += ["| block in INT8 alone | multiply-adds | harm, mean px |", "|---|---|---|"]
        lines += [f"| {f.block.name} | {f.block.share:.1%} | {f.harm:.3f} |" for f in findings]
        lines.append("")
    return "\n".join(lines)
