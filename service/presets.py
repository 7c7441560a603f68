"""Models as the pipeline sees them: skeleton, sizes and thresholds, read from the configs' ``parameters``.

Nothing about a model is written in the service: a new skeleton or input size is a new entry in the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.engines.base import Engine, ModelMetadata, Models
from service.errors import InvalidOption, ModelNotFound
from service.skeletons import Skeleton


@dataclass(frozen=True)
class DetectorPreset:
    """A person detector (``kind=detector``).

    Attributes:
        name: model name.
        side: side of its square input in pixels.
        box_threshold: lowest score of a box that is kept by default.
        version: the one that answers.
    """

    name: str
    side: int
    box_threshold: float
    version: int = 1


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
        flip: whether that one answers unless a request says otherwise.
        version: the one that answers.
    """

    name: str
    skeleton: Skeleton
    size: tuple[int, int]
    radii: tuple[str, ...]
    detector: str
    padding: float
    score_threshold: float
    flip_model: str | None
    flip: bool = False
    version: int = 1

    def ensemble(self, flip: bool) -> str:
        """The model that answers with or without the mirrored crop; this one where no other does."""
        return (self.flip_model or self.name) if flip else self.name


def _radii(text: str) -> tuple[str, ...]:
    radii = tuple(name.strip() for name in text.split(","))
    if not all(radii):
        raise ValueError("a radius has no name")
    return radii


def _size(text: str) -> int:
    if (size := int(text)) < 1:
        raise ValueError("a size is 1 or more")
    return size


def _score(text: str) -> float:
    if not 0 <= (score := float(text)) <= 1:
        raise ValueError("a score is from 0 to 1")
    return score


def _padding(text: str) -> float:
    if not 0 < (padding := float(text)) < 100:
        raise ValueError("a factor is over 0 and under 100")
    return padding


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


# What the configs' ``parameters`` must tell, by ``kind``, and how each is read (ValueError when it cannot be).
PARAMETERS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "detector": {"input_size": _size, "box_threshold": _score},
    "pose": {
        "skeleton": Skeleton.from_json,
        "input_width": _size,
        "input_height": _size,
        "radii": _radii,
        "detector": str,
        "padding": _padding,
        "score_threshold": _score,
    },
}
# What they may tell, and what holds where they do not.
DEFAULTS: Mapping[str, Mapping[str, tuple[Callable[[str], Any], Any]]] = {
    "pose": {"flip_model": (str, ""), "flip": (_flag, False)},
}


def detector_preset(metadata: ModelMetadata) -> DetectorPreset:
    """Read a detector's parameters. Raises ModelNotFound naming the parameter that is missing or wrong."""
    values = {name: read_parameter(metadata, "detector", name) for name in PARAMETERS["detector"]}
    return DetectorPreset(
        name=metadata.name,
        side=values["input_size"],
        box_threshold=values["box_threshold"],
        version=max(metadata.versions, default=1),
    )


def pose_preset(metadata: ModelMetadata) -> PosePreset:
    """Read a pose ensemble's parameters. Raises ModelNotFound naming the parameter that is missing or wrong."""
    values = {name: read_parameter(metadata, "pose", name) for name in (*PARAMETERS["pose"], *DEFAULTS["pose"])}
    return PosePreset(
        name=metadata.name,
        skeleton=values["skeleton"],
        size=(values["input_width"], values["input_height"]),
        radii=values["radii"],
        detector=values["detector"],
        padding=values["padding"],
        score_threshold=values["score_threshold"],
        flip_model=values["flip_model"] or None,
        flip=values["flip"] and bool(values["flip_model"]),
        version=max(metadata.versions, default=1),
    )


def read_parameter(metadata: ModelMetadata, kind: str, name: str) -> Any:
    """One of the PARAMETERS or DEFAULTS of a kind. Raises ModelNotFound naming what is missing or wrong."""
    text = metadata.parameters.get(name)
    read, default = DEFAULTS.get(kind, {}).get(name, (None, None))
    if text is None and read is not None:
        return default
    if text is None:
        raise ModelNotFound(f"model {metadata.name!r} has no parameter {name!r} in its config.pbtxt")
    try:
        return (read or PARAMETERS[kind][name])(text)
    except ValueError as error:
        raise ModelNotFound(f"model {metadata.name!r}: parameter {name} = {text[:100]!r}: {error}") from error


class Presets:
    """The presets of an engine's models; a config is read again when it is another one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, tuple[ModelMetadata, ModelMetadata, PosePreset, DetectorPreset]] = {}

    async def find(self, name: str, models: Models | None = None) -> tuple[PosePreset, DetectorPreset]:
        """The pose preset of that name and its detector, of the same state of the models.

        Args:
            name: a pose model's.
            models: where to look; the engine when None.

        Raises:
            InvalidOption: there is no pose model of that name; the detail lists those there are.
            ModelNotFound: it was there before, its detector is not loaded, or a config lacks a parameter.
        """
        models = models or self._engine
        try:
            metadata = await models.metadata(name)
        except ModelNotFound:
            if name in self._known:
                raise  # a name that was right: the model is being replaced, or was taken away
            raise await self._unknown(name, models) from None
        if metadata.parameters.get("kind") != "pose":
            raise await self._unknown(name, models)
        known = self._known.get(name)
        if known is not None and (known[0] is metadata or known[0] == metadata):
            detector_metadata = await models.metadata(known[2].detector)
            if known[1] is detector_metadata or known[1] == detector_metadata:
                return known[2:]
        pose = pose_preset(metadata)
        detector_metadata = await models.metadata(pose.detector)
        detector = detector_preset(detector_metadata)
        self._known[name] = (metadata, detector_metadata, pose, detector)
        return pose, detector

    def knows(self, name: str) -> bool:
        """Whether that model was found before."""
        return name in self._known

    def rows_for_one(self, name: str, flip: bool | None) -> int:
        """How often each person goes through the networks of that pose model."""
        if flip is None and name in self._known:
            flip = self._known[name][2].flip
        return 2 if flip else 1

    def forget(self, name: str) -> None:
        """Take the model for one that is not there, when it cannot be found again."""
        self._known.pop(name, None)

    async def names(self, models: Models | None = None) -> list[str]:
        """Names of the pose models, sorted."""
        models = models or self._engine
        every = [await models.metadata(name) for name in await models.models()]
        return [metadata.name for metadata in every if metadata.parameters.get("kind") == "pose"]

    async def _unknown(self, name: str, models: Models) -> InvalidOption | ModelNotFound:
        names = await self.names(models)
        if not names:
            return ModelNotFound("the engine has no pose model loaded")
        return InvalidOption(f"model: there is no pose model {name!r}; there are {', '.join(names)}")
