"""Recipes: one YAML file says all that a training run depends on, checked by a typed model.

A path in a recipe may use ``${TRITONPOSE_DATA}`` and other environment variables, so that recipes in the
repository name data sets without saying where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names file, field and value."""


def _expand(path: Path) -> Path:
    text = os.path.expandvars(str(path))
    if "$" in text:
        raise ValueError(f"{path}: environment variable not set")
    return Path(text).expanduser()


DataPath = Annotated[Path, AfterValidator(_expand)]


class Strict(BaseModel):
    """Base of all recipe parts: a misspelt field is an error, not silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Format = Literal["coco", "aic", "mpii", "lsp", "crowdpose", "ochuman"]


class DataSource(Strict):
    """One data set: where it lies, how it is read, and how its people are used."""

    annotations: DataPath = Field(description="annotation file, in the data set's own form or COCO's")
    images: DataPath = Field(description="folder of its pictures")
    format: Format = Field("coco", description="whose file it is: names of joints, visibility codes, areas")
    repeat: float = Field(1.0, gt=0, description="how often each sample counts within one epoch")
    share: float | None = Field(
        None, gt=0, le=1, description="part of all drawn crops that comes from this set, instead of repeat"
    )
    weight: float = Field(1.0, gt=0, description="how much its labels count in the loss; less for pseudo-labels")
    select: Literal["slides", "hrnet"] | None = Field(
        None, description="leave out people whose joints lie far from the middle of their box (training.selection)"
    )
    keep: DataPath | None = Field(
        None, description="JSON list of the annotation ids to train on, as `select-hard` writes it"
    )
    common_with: Literal["coco17", "lsp14", "aic14", "crowdpose14", "mpii16", "union19"] | None = Field(
        None, description="train only on the joints that this skeleton has too"
    )
    only_joints: tuple[str, ...] = Field((), description="train only on these joints; none for all")


R = TypeVar("R", bound=BaseModel)


def set_field(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set ``field`` or ``field.sub`` of a raw recipe. Raises ValueError when a parent is not a section."""
    *parents, last = name.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ValueError(f"{parent} is not a section")
    place[last] = value


def read_recipe(path: Path, kind: type[R], overrides: Sequence[str] = ()) -> R:
    """Read a YAML recipe.

    Args:
        path: the file.
        kind: the pydantic model it must fit.
        overrides: ``field=value`` or ``field.sub=value``; the value is read as YAML.

    Raises:
        RecipeError: file, field and value that do not fit.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping, this is {type(raw).__name__}")
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"--set {override}: write field=value")
        try:
            set_field(raw, name, yaml.safe_load(value))
        except ValueError as error:
            raise RecipeError(f"--set {override}: {error}") from error
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
        raise RecipeError(f"{path}: {lines}") from error
