"""The options of a request: one model, validated once, for queries, forms, the command line and the docs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from service.errors import InvalidOption

Format = Literal["coco", "results", "image"]
Suppression = Literal["hard", "soft", "soft_linear"]

_MAX_WEIGHT = 8.0

# Of one request, over query and body: there are a dozen options, each a short text, a number or a few numbers.
MAX_OPTIONS = 32
MAX_NAME = 64
MAX_VALUE = 1000
# No longer name is like one of ours; comparing a name with all of them takes 30 us, and grows with its length.
_LONGEST_TYPO = 32


def _weights(value: object) -> object:
    if isinstance(value, str):
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("comma-separated numbers, one for each radius, e.g. 1,1,1") from None
    return value


class PoseOptions(BaseModel):
    """How a request wants its people. Unknown names, NaN and values out of range raise (see :func:`read_options`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field("pose", min_length=1, max_length=100, description="Pose model; `GET /v1/models` lists them.")
    score_threshold: float | None = Field(
        None, ge=0, le=1, description="Joint score from which `v` is 2. Default: the model's own."
    )
    box_threshold: float | None = Field(
        None, ge=0, le=1, description="Lowest detector score of a person. Default: the detector's own."
    )
    max_people: int = Field(20, ge=1, le=200, description="Most people in one picture; the best boxes are kept.")
    nms_iou: float = Field(0.6, ge=0, le=1, description="Boxes that overlap a better one by more than this go.")
    nms_oks: float = Field(0.5, ge=0, le=1, description="Poses more similar (OKS) to a better one than this go.")
    nms_boxes: Suppression = Field(
        "hard",
        description="`soft`: no box goes at once, its score becomes `score * exp(-IoU^2 / nms_iou)` for each better "
        "one; `soft_linear`: `score * (1 - IoU)` where the IoU is above `nms_iou`. Boxes below `box_threshold` then "
        "go; `box_score` and `score` are the lowered ones.",
    )
    nms_poses: Suppression = Field(
        "hard", description="The same for poses, with OKS and `nms_oks`; `score` is the lowered one."
    )
    rescore: bool | Literal["mean_over_0.2"] = Field(
        True,
        description="Person score: `true` box score x mean of the joint scores, `mean_over_0.2` only of joints "
        "above 0.2, `false` the box score.",
    )
    flip: bool | None = Field(
        None, description="Average with the mirrored crop: slower, more exact. Default: the model's own."
    )
    fusion: Annotated[tuple[float, ...] | None, BeforeValidator(_weights)] = Field(
        None,
        description="Exponents of the model's radius maps in their product: `1,1,1` all three (the default, as many "
        "as the model has), `1,0,0` the first alone.",
    )
    format: Format = Field("coco", description="`coco` document, `results` list for `loadRes`, or drawn `image`.")

    @field_validator("fusion", mode="after")
    @classmethod
    def _check_fusion(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is None:
            return None
        if not all(math.isfinite(weight) and 0 <= weight <= _MAX_WEIGHT for weight in weights):
            raise ValueError(f"weights lie in 0..{_MAX_WEIGHT:g}")
        if not sum(weights) > 0:
            raise ValueError("at least one weight must be above 0")
        return weights

    def echo(self) -> dict[str, object]:
        """The options as they are echoed in the answer's ``info``."""
        return dict(_echo(self))


@lru_cache(128)
def _echo(options: PoseOptions) -> dict[str, object]:
    echoed = options.model_dump()
    if options.fusion is not None:
        echoed["fusion"] = ",".join(f"{weight:g}" for weight in options.fusion)
    return echoed


def read_options(given: Iterable[tuple[str, object]], defaults: PoseOptions | None = None) -> PoseOptions:
    """Validate options as they arrive, as pairs of name and value (text from queries and forms).

    Args:
        given: pairs in the order of the request; a name that comes twice is refused.
        defaults: values of the options that are not given; :class:`PoseOptions`' own when None.

    Raises:
        InvalidOption: names every option that is unknown, given twice or out of range; or they are too many or long.
    """
    values: dict[str, object] = {}
    wrong: list[str] = []
    for name, value in _bounded(given):
        if name in values:
            wrong.append(f"{name}: given twice")
        values[name] = value
    for name in values:
        if name not in PoseOptions.model_fields:
            close = difflib.get_close_matches(name, PoseOptions.model_fields, n=1) if len(name) <= _LONGEST_TYPO else ()
            wrong.append(f"{name}: unknown option" + (f"; did you mean {close[0]}?" if close else ""))
    if wrong:
        raise InvalidOption("; ".join(wrong))
    if defaults is not None:
        if not values:
            return defaults
        values = {**defaults.model_dump(), **values}
    try:
        return PoseOptions.model_validate(values)
    except ValidationError as error:
        raise InvalidOption("; ".join(_explain(values, error))) from None


def _bounded(given: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    """The pairs, when they are few and short: this runs on the event loop, and JSON brings 60 MB of them."""
    pairs = list(given)
    if len(pairs) > MAX_OPTIONS:
        raise InvalidOption(f"{len(pairs)} options; at most {MAX_OPTIONS} are read")
    for name, value in pairs:
        if len(name) > MAX_NAME:
            raise InvalidOption(f"{name[:50]}...: an option's name of {len(name)} characters; at most {MAX_NAME}")
        parts = value if isinstance(value, list) else (value,)
        if len(parts) > MAX_OPTIONS or not all(_short(part) for part in parts):
            raise InvalidOption(
                f"{name}: a text of at most {MAX_VALUE} characters, a number, true, false, null or a list of at most "
                f"{MAX_OPTIONS} of these is expected"
            )
    return pairs


def _short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_VALUE
    return value is None or isinstance(value, int | float)


def _explain(values: dict[str, object], error: ValidationError) -> list[str]:
    """One line for each wrong option: its name, what it must be, and what was given."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0])
        message = problem["msg"].removeprefix("Value error, ")
        if name == "rescore":  # a union reports each of its members
            message = "Input should be true, false or mean_over_0.2"
        lines.setdefault(name, f"{name}: {message}, got {str(values.get(name))[:50]!r}")
    return list(lines.values())
