"""``python -m export``: trained checkpoints into the model repository."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from export.commands import check_repository, configure
from export.precision.command import compare_precision, quantize
from export.tensorrt_plans.command import tensorrt
from export.terminal import make_console, refusals


class _Commands(TyperGroup):
    """What is no command's name belongs to ``export``: ``python -m export RUN/model.pt`` needs no word for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["export", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(add_completion=False, cls=_Commands, no_args_is_help=True)
app.command("check-repository")(check_repository)
app.command("configure")(configure)
app.command("quantize")(quantize)
app.command("compare-precision")(compare_precision)
app.command("tensorrt")(tensorrt)
console = make_console(120)


class _Precision(str, Enum):
    FP32 = "fp32"
    FP16_WEIGHTS = "fp16-weights"


class _Refinement(str, Enum):
    NONE = "none"
    QUARTER = "quarter"
    MEGVII = "megvii"
    TAYLOR = "taylor"
    DARK = "dark"


class _Convention(str, Enum):
    PIXEL_CENTRE = "pixel_centre"
    MSRA = "msra"
    MEGVII = "megvii"
    UDP = "udp"


@app.command()
def export(
    checkpoints: Annotated[list[Path], typer.Argument(help="model.pt of training runs: pose, detector, or both")],
    repository: Annotated[Path, typer.Option(help="model repository to write to")] = Path("model_repository"),
    name: Annotated[str, typer.Option(help="pose ensemble of the first preset, prefix of its parts")] = "pose",
    detector: Annotated[str, typer.Option(help="person detector; pose ensembles ask for it")] = "person_detector",
    keep: Annotated[int, typer.Option(min=1, help="versions kept of each model")] = 2,
    precision: Annotated[_Precision, typer.Option(help="how weights are stored")] = _Precision.FP16_WEIGHTS,
    refine: Annotated[
        _Refinement | None,
        typer.Option(help="sub-pixel step from the highest cell; default: the checkpoint's, taylor for ours"),
    ] = None,
    convention: Annotated[
        _Convention | None,
        typer.Option(help="of heatmap coordinates, for weights that others trained; default: the checkpoint's"),
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="joint score from which v is 2")] = 0.2,
    box_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="lowest detector score kept; default: the recipe's")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="average with the mirrored crop unless a request says otherwise")
    ] = False,
    check_data: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="COCO-format annotations and their picture folder; else the recipe's data, else rendered"),
    ] = None,
    check_count: Annotated[int, typer.Option(min=8, help="pictures, and people, to check on")] = 64,
    metrics: Annotated[list[Path] | None, typer.Option(help="JSON of `training evaluate`, for the model card")] = None,
    failures: Annotated[
        Path | None, typer.Option(help="PNG of `training evaluate --failures`; the pose model's card shows it")
    ] = None,
) -> None:
    """Write checkpoints as ONNX models and ensembles; refuses (exit 1) when they do not answer as trained."""
    # Torch takes seconds to import: --help should not.
    from export.installation import ExportRequest, run_export
    from export.plans import PlanOptions

    options = PlanOptions(
        name=name, detector=detector, precision=precision.value, score_threshold=score_threshold,
        box_threshold=box_threshold, flip=flip,
    )  # fmt: skip
    request = ExportRequest(
        checkpoints=tuple(checkpoints), repository=repository, options=options, keep=keep,
        check_data=check_data, check_count=check_count, metrics=tuple(metrics or ()), failures=failures,
        convention=convention.value if convention else None, refinement=refine.value if refine else None,
    )  # fmt: skip
    with refusals(console, "not exported"):
        run_export(request, console)


if __name__ == "__main__":
    app()
