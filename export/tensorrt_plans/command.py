"""The command line of TensorRT plans; what is heavy is imported when it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from export.precision.command import WIDTH
from export.terminal import make_console, refusals


class _Precision(str, Enum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


def tensorrt(
    into: Annotated[Path, typer.Option(help="sibling repository to write, with plans in place of the networks")],
    repository: Annotated[Path, typer.Option(help="model repository with float networks")] = Path("model_repository"),
    precision: Annotated[_Precision, typer.Option(help="what the networks compute in")] = _Precision.FP16,
    tensorrt_version: Annotated[
        str | None,
        typer.Option(help="of the Triton image that will serve the plans, such as 10.14.1; another one is refused"),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="network to build, repeatable; default: all that take pictures")
    ] = None,
    batches: Annotated[
        tuple[int, int, int] | None, typer.Option(help="least, usual and largest batch; default: 1, 8, max_batch_size")
    ] = None,
    keep_float: Annotated[
        list[str] | None, typer.Option(help="node that is not quantized (INT8) or stays float32 (FP16), repeatable")
    ] = None,
    float_share: Annotated[
        float, typer.Option(min=0, max=1, help="INT8: most of the multiply-adds that measurement may leave in FP16")
    ] = 0.1,
    workspace: Annotated[float, typer.Option(min=0.1, help="GiB of GPU memory that kernels may use")] = 4.0,
    level: Annotated[int, typer.Option(min=0, max=5, help="TensorRT's effort in finding kernels")] = 3,
    timing_cache: Annotated[Path | None, typer.Option(help="file with timings of earlier builds")] = None,
    data: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="COCO-format annotations and pictures, a training set; default: those of TRITONPOSE_DATA"),
    ] = None,
    count: Annotated[int, typer.Option(min=8, help="pictures to calibrate with, as many others to compare on")] = 64,
) -> None:
    """Build TensorRT plans on a GPU machine; without TensorRT or a GPU, says exactly what is missing (exit 1)."""
    from export.tensorrt_plans.builder import BuildOptions
    from export.tensorrt_plans.conversion import PlanRequest, run_tensorrt

    console = make_console(WIDTH)
    request = PlanRequest(
        repository=repository, into=into, precision=precision.value, models=tuple(model or ()),
        version=tensorrt_version, batches=batches, float_nodes=tuple(keep_float) if keep_float else None,
        float_share=float_share, build=BuildOptions(int(workspace * 2**30), level, timing_cache), data=data,
        count=count,
    )  # fmt: skip
    with refusals(console, "no plans"):
        run_tensorrt(request, console)
