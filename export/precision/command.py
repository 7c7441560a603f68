"""Command lines of the conversions. What is heavy is imported when a command runs: --help should not take seconds."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from export.terminal import make_console, refusals

_REPOSITORY = Path("model_repository")
WIDTH = 160  # tables of many columns


class _Precision(str, Enum):
    FP16 = "fp16"
    INT8 = "int8"


class _Activations(str, Enum):
    U8 = "u8"
    S8 = "s8"


class _Method(str, Enum):
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


class _Boxes(str, Enum):
    TRUTH = "truth"
    DETECTOR = "detector"


def quantize(
    precision: Annotated[_Precision, typer.Argument(help="what the networks compute in")],
    repository: Annotated[Path, typer.Option(help="model repository with float networks")] = _REPOSITORY,
    into: Annotated[
        Path | None, typer.Option(help="sibling repository to write; default: a new version in the repository itself")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="network to convert, repeatable; default: all that take pictures")
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="node that stays float32, repeatable; `none` for none; default: found by measurement"),
    ] = None,
    float_share: Annotated[
        float, typer.Option(min=0, max=1, help="most of the multiply-adds that measurement may leave in float32")
    ] = 0.1,
    activations: Annotated[_Activations, typer.Option(help="8 bits with a zero point, or symmetric")] = _Activations.U8,
    method: Annotated[_Method, typer.Option(help="how ranges are chosen from the calibration pictures")] = (
        _Method.MINMAX
    ),
    data: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="COCO-format annotations and pictures, a training set; default: those of TRITONPOSE_DATA"),
    ] = None,
    count: Annotated[int, typer.Option(min=8, help="pictures to calibrate with, as many others to compare on")] = 64,
    keep: Annotated[int, typer.Option(min=1, help="versions kept of each model")] = 2,
) -> None:
    """Write networks in FP16 or INT8; refuses (exit 1) when they do not answer nearly as the float ones."""
    from export.precision.conversion import QuantizeRequest, run_quantize
    from export.precision.int8 import Int8Options

    console = make_console(WIDTH)
    nodes = None if keep_float is None else tuple(node for node in keep_float if node != "none")
    request = QuantizeRequest(
        repository=repository, into=into, precision=precision.value, models=tuple(model or ()), float_nodes=nodes,
        float_share=float_share, options=Int8Options(activations.value, method.value), data=data, count=count,
        keep=keep,
    )  # fmt: skip
    with refusals(console, "not converted"):
        run_quantize(request, console)


def compare_precision(
    variants: Annotated[list[Path], typer.Argument(help="sibling repositories that `quantize` wrote")],
    repository: Annotated[Path, typer.Option(help="model repository with float networks")] = _REPOSITORY,
    validation: Annotated[
        tuple[Path, Path] | None, typer.Option(help="COCO-format annotations and pictures to measure AP on")
    ] = None,
    boxes: Annotated[
        list[_Boxes] | None, typer.Option(help="of the labels or the detector's own, repeatable; default: both")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only so many pictures of the validation set")] = None,
    box_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="lowest box score that is posed; default: the evaluation's")
    ] = None,
    data: Annotated[
        tuple[Path, Path] | None, typer.Option(help="pictures to compare answers on; default: of TRITONPOSE_DATA")
    ] = None,
    count: Annotated[int, typer.Option(min=8, help="how many of them")] = 64,
    rounds: Annotated[int, typer.Option(min=3, help="timed runs of each network, in turn")] = 20,
) -> None:
    """Print size, speed, differences and AP of other precisions beside float32, in Markdown."""
    from export.precision.figures import CompareRequest, run_compare

    console = make_console(WIDTH)
    chosen = tuple(each.value for each in boxes) if boxes else tuple(each.value for each in _Boxes)
    request = CompareRequest(
        repository=repository, variants=tuple(variants), data=data, count=count, rounds=rounds, validation=validation,
        boxes=chosen, limit=limit, box_threshold=box_threshold,
    )  # fmt: skip
    with refusals(console, "not compared"):
        run_compare(request, console)
