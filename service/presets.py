"""Models as the pipeline sees them: skeleton, sizes and thresholds, read from the configs' ``parameters``.

Nothing about a model is written in the service: a new skeleton or input size is a new entry in the repository.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from service.engines.base import Engine, ModelMetadata
from service.errors import InvalidOption, ModelNotFound
from service.skeletons import Skeleton

# A model that is replaced in a running Triton is noticed after this many seconds.
_FRESH_SECONDS = 30.0

Value = TypeVar("Value")


@dataclass(frozen=True)
class DetectorPreset:
    """A person detector (``kind=detector``).

    Attributes:
        name: model name.
        side: side of its square input in pixels.
        box_threshold: lowest score of a box that is kept by default.
    """

    name: str
    side: int
    box_threshold: float


@dataclass(frozen=True)
class PosePreset:
    """An ensemble that answers poses (``kind=pose``).

    Attributes:
        name: model name.
        skeleton: the joints it answers.
        size: width, height of its crops.
        radii: names of the radius maps, in the order of the fusion weights.
        detector: name of the detector that finds its people.
        padding: factor on a box before it is cropped.
        score_threshold: joint score from which ``v`` is 2 by default.
        flip_model: the ensemble that averages with the mirrored crop; None where there is none.
    """

    name: str
    skeleton: Skeleton
    size: tuple[int, int]
    radii: tuple[str, ...]
    detector: str
    padding: float
    score_threshold: float
    flip_model: str | None


def detector_preset(metadata: ModelMetadata) -> DetectorPreset:
    """Read a detector's parameters. Raises ModelNotFound naming the parameter that is missing or wrong."""
    return DetectorPreset(
        name=metadata.name,
        side=_parameter(metadata, "input_size", int),
        box_threshold=_parameter(metadata, "box_threshold", float),
    )


def pose_preset(metadata: ModelMetadata) -> PosePreset:
    """Read a pose ensemble's parameters. Raises ModelNotFound naming the parameter that is missing or wrong."""
    return PosePreset(
        name=metadata.name,
        skeleton=_parameter(metadata, "skeleton", Skeleton.from_json),
        size=(_parameter(metadata, "input_width", int), _parameter(metadata, "input_height", int)),
        radii=_parameter(metadata, "radii", lambda text: tuple(name.strip() for name in text.split(","))),
        detector=_parameter(metadata, "detector", str),
        padding=_parameter(metadata, "padding", float),
        score_threshold=_parameter(metadata, "score_threshold", float),
        flip_model=metadata.parameters.get("flip_model") or None,
    )


def _parameter(metadata: ModelMetadata, name: str, read: Callable[[str], Value]) -> Value:
    text = metadata.parameters.get(name)
    if text is None:
        raise ModelNotFound(f"model {metadata.name!r} has no parameter {name!r} in its config.pbtxt")
    try:
        return read(text)
    except ValueError as error:
        raise ModelNotFound(f"model {metadata.name!r}: parameter {name} = {text[:100]!r}: {error}") from error


class Presets:
    """The presets of an engine's models, remembered for half a minute."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, tuple[float, PosePreset, DetectorPreset]] = {}

    async def find(self, name: str) -> tuple[PosePreset, DetectorPreset]:
        """The pose preset of that name and its detector.

        Raises:
            InvalidOption: there is no pose model of that name; the detail lists those there are.
            ModelNotFound: its detector is not loaded, or a config lacks a parameter.
        """
        known = self._known.get(name)
        if known and time.monotonic() < known[0]:
            return known[1:]
        if name not in await self._engine.models():
            raise await self._unknown(name)
        metadata = await self._engine.metadata(name)
        if metadata.parameters.get("kind") != "pose":
            raise await self._unknown(name)
        pose = pose_preset(metadata)
        detector = detector_preset(await self._engine.metadata(pose.detector))
        self._known[name] = (time.monotonic() + _FRESH_SECONDS, pose, detector)
        return pose, detector

    def forget(self) -> None:
        """Ask the engine again next time (a model may have been replaced)."""
        self._known.clear()

    async def names(self) -> list[str]:
        """Names of the pose models, sorted."""
        every = [await self._engine.metadata(name) for name in await self._engine.models()]
        return [metadata.name for metadata in every if metadata.parameters.get("kind") == "pose"]

    async def _unknown(self, name: str) -> InvalidOption | ModelNotFound:
        names = await self.names()
        if not names:
            return ModelNotFound("the engine has no pose model loaded")
        return InvalidOption(f"model: there is no pose model {name!r}; there are {', '.join(names)}")
