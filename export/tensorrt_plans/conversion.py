"""``python -m export tensorrt``: a sibling repository whose networks are TensorRT plans for this machine's GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from export.checkpoints import ExportError
from export.installation import differences_table
from export.parity import Difference
from export.precision.calibration import Pictures, load_pictures
from export.precision.comparison import Replaced, Run, ask, compare, questions
from export.precision.conversion import chosen_networks, quantized_network, read_configs, refuse_failures
from export.precision.int8 import Int8Options
from export.precision.regions import prepared
from export.precision.variants import Converted, stage_variant
from export.repository import staging_folder, version_numbers
from export.tensorrt_plans.builder import BuildOptions, build_plan
from export.tensorrt_plans.graphs import PlanPrecision, typed_graph
from export.tensorrt_plans.profiles import BatchProfile, batch_profile, input_shapes
from export.tensorrt_plans.requirements import Gpu, find_gpu, find_tensorrt, require_torch_on_gpu
from service.engines.config import PLAN, ModelConfig
from service.engines.embedded import EmbeddedEngine
from service.engines.sessions import RuntimeSettings

FOR_TENSORRT = Int8Options(activations="s8", for_tensorrt=True)


@dataclass(frozen=True)
class PlanRequest:
    """What one run of the command line asks for; see ``python -m export tensorrt --help``."""

    repository: Path
    into: Path
    precision: PlanPrecision = "fp16"
    models: tuple[str, ...] = ()
    version: str | None = None
    batches: tuple[int, int, int] | None = None
    float_nodes: tuple[str, ...] | None = None
    float_share: float = 0.1
    build: BuildOptions = field(default_factory=BuildOptions)
    data: tuple[Path, Path] | None = None
    count: int = 64


def run_tensorrt(request: PlanRequest, console: Console) -> None:
    """Build, compare, publish: all networks of the request, or none.

    Raises:
        ExportError: with the reason; nothing was written but the timing cache.
    """
    if request.into.resolve() == request.repository.resolve():
        raise ExportError(
            f"--into must be another folder than {request.repository}: one config cannot have ONNX and plans as "
            "versions of one model, and the embedded engine reads only ONNX"
        )
    if version_numbers_in(request.into):
        raise ExportError(f"{request.into} holds models already: plans are not kept beside older ones, remove it first")
    trt, gpu = find_tensorrt(request.version), find_gpu()
    require_torch_on_gpu()
    configs = read_configs(request.repository)
    names = chosen_networks(configs, request.models)
    profiles = {name: batch_profile(configs[name].metadata, request.batches) for name in names}
    pictures = load_pictures(request.data, request.count)
    console.print(f"{', '.join(names)} to {request.precision} plans of TensorRT {trt.__version__} on {gpu.name}")
    plans: dict[str, bytes] = {}
    for name in names:
        graph = plan_graph(configs, name, request, pictures, console)
        shapes = input_shapes(configs[name].metadata, profiles[name])
        plans[name] = build_plan(trt, graph.SerializeToString(deterministic=True), shapes, request.build)
        console.print(f"{name}: {len(plans[name]) / 1e6:.1f} MB for batches of {profiles[name]}")
    from export.tensorrt_plans.runtime import PlanRun

    runs: dict[str, Run] = {name: PlanRun(trt, plans[name], configs[name].metadata) for name in names}
    found = asyncio.run(compare_plans(request, configs, runs, pictures))
    console.print(differences_table(found))
    refuse_failures(found, "fp16" if request.precision == "fp32" else request.precision)
    write_repository(request, configs, plans, profiles, str(trt.__version__), gpu)
    console.print(f"wrote {request.into}", soft_wrap=True)


def plan_graph(
    configs: Mapping[str, ModelConfig], name: str, request: PlanRequest, pictures: Pictures, console: Console
) -> Any:
    """The ONNX graph that TensorRT is given for one network."""
    path = configs[name].onnx
    assert path is not None
    model = prepared(path)
    kept: Sequence[str] = () if request.precision == "int8" else request.float_nodes or ()
    if request.precision == "int8":
        # Blocks that INT8 harms are computed in float16, the rest of the float graph as well.
        model, _, _ = quantized_network(
            request.repository, configs, name, model, pictures, FOR_TENSORRT, request.count, request.float_share,
            request.float_nodes, console,
        )  # fmt: skip
    return typed_graph(model, request.precision, kept)


async def compare_plans(
    request: PlanRequest, configs: Mapping[str, ModelConfig], runs: Mapping[str, Run], pictures: Pictures
) -> list[Difference]:
    """The ensembles with plans in them, beside the float repository on ONNX Runtime."""
    wanted = questions(configs, list(runs), pictures.comparison, request.count)
    engine = EmbeddedEngine(request.repository, RuntimeSettings(providers=("CPUExecutionProvider",)))
    await engine.start()
    try:
        expected = await ask(engine, wanted)
        found = await ask(Replaced(engine, configs, runs), wanted)
    finally:
        await engine.close()
    return compare(wanted, expected, found, "int8" if request.precision == "int8" else "fp16")


def write_repository(
    request: PlanRequest, configs: Mapping[str, ModelConfig], plans: Mapping[str, bytes],
    profiles: Mapping[str, BatchProfile], version: str, gpu: Gpu,
) -> None:  # fmt: skip
    """Write the sibling, whole, beside its place, and move it there."""
    converted = {
        name: Converted(
            plan, plan_card(request, profiles[name], version, gpu),
            {"precision": request.precision, "tensorrt_version": version, "gpu": gpu.name}, PLAN,
        )
        for name, plan in plans.items()
    }  # fmt: skip
    with staging_folder(request.into) as staged:
        models = staged / "models"  # what else lies there is the staging's own
        models.mkdir()
        stage_variant(configs, converted, models, request.into, whole=True)
        try:
            if request.into.is_dir():
                request.into.rmdir()  # empty, or this fails
            models.rename(request.into)
        except OSError as error:
            raise ExportError(f"{request.into} could not be written: {error}") from error


def plan_card(request: PlanRequest, profile: BatchProfile, version: str, gpu: Gpu) -> str:
    """What a card says of a plan."""
    rest = "" if request.precision == "fp32" else "; input, softmax, box decoding and suppression in float32"
    return "\n".join(
        [
            "## TensorRT plan",
            "",
            f"{request.precision}{rest}. Built by `python -m export tensorrt` with TensorRT {version} on {gpu.name} "
            f"(compute capability {gpu.capability[0]}.{gpu.capability[1]}, driver for CUDA {gpu.driver_cuda[0]}."
            f"{gpu.driver_cuda[1]}); it runs with no other TensorRT version and on no other type of GPU.",
            f"Batches of {profile.least} to {profile.most}, fastest at {profile.usual}.",
            "",
        ]
    )


def version_numbers_in(repository: Path) -> bool:
    """Whether a folder holds any model version."""
    return repository.is_dir() and any(version_numbers(path) for path in repository.iterdir())
