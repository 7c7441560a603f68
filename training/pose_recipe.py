"""The recipe of stage `pose`: all that a run depends on, checked before anything is read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from service.crops import PADDING
from service.skeletons import SKELETONS, Skeleton
from training.augment import Augmentation
from training.datasets.patches import PatchSize
from training.networks.hourglass import HourglassConfig
from training.networks.registry import AnyNetwork
from training.optimisers import Optimiser
from training.processes import Precision
from training.recipe import DataPath, DataSource, Strict
from training.schedule import Schedule
from training.supervision import Supervision
from training.targets import Radius


class SmallCrops(Strict):
    """Crops of another size for the first part of a run (progressive resizing): small ones are the faster to learn."""

    until: float = Field(gt=0, lt=1, description="part of the steps that has passed when the next size begins")
    width: int = Field(ge=32, description="of the crop, pixels")
    height: int = Field(ge=32, description="of the crop, pixels")


class PoseRecipe(Strict):
    """All that a pose run depends on."""

    data: tuple[DataSource, ...] = Field((), description="sets to train on; none only with imported weights")
    skeleton: Literal["coco17", "lsp14", "aic14", "crowdpose14", "mpii16", "union19"] = "union19"
    presets: tuple[str, ...] = Field(("coco17",), description="skeletons to export; the first is the default")
    width: int = Field(192, ge=32, description="of the crop, pixels")
    height: int = Field(256, ge=32, description="of the crop, pixels")
    progressive: tuple[SmallCrops, ...] = Field((), description="sizes before that of width and height, in order")
    network: AnyNetwork = HourglassConfig()
    radii: tuple[Radius, ...] = Field(min_length=1)
    supervision: Supervision = Supervision()
    augmentation: Augmentation = Augmentation()
    min_joints: int = Field(3, ge=1)
    holdout: float = Field(0.03, ge=0, lt=0.5, description="part of the training pictures kept aside to watch")
    steps: int = Field(ge=0, description="0: weights that were imported, not trained here")
    batch: int = Field(32, ge=2, description="people of one step, over all processes")
    learning_rate: float = Field(2e-3, gt=0, description="at its highest")
    weight_decay: float = Field(1e-2, ge=0, description="1e-2 suits adamw; the papers' L2 with adam is 1e-5")
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    clip: float | None = Field(5.0, gt=0, description="largest gradient norm; null for any")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which ship; 0: no average")
    precision: Precision = "bf16-mixed"
    threads: int | None = Field(None, ge=1, description="CPU threads; all when not given")
    workers: int = Field(0, ge=0, description="threads that decode the pictures at the start; 0: one for each core")
    devices: int = Field(1, ge=1, description="processes on this machine; under torchrun its own number counts")
    sync_batchnorm: bool = Field(True, description="several processes: batch statistics of the whole batch")
    memory: Literal["auto", "host", "device"] = Field(
        "auto", description="where people's pictures lie: on the GPU where they fit in half of its free memory"
    )
    patch_reach: float = Field(2.0, ge=1.25, le=4, description="boxes that are kept around a person, along one axis")
    patch_detail: float = Field(1.25, gt=0, le=2, description="pixels kept for each crop pixel, along one axis")
    cache: DataPath | None = Field(None, description="folder for decoded people, mapped and shared by runs")
    save_every: int = Field(500, ge=1)
    watch_every: int = Field(1000, ge=1)
    seed: int = 0
    gaussian: float | None = Field(
        None, ge=0, description="deviation of first weights in units of sqrt(1 / fan_in); null: as the network's paper"
    )
    init: DataPath | None = Field(None, description="pose checkpoint to start from, matched by name and shape")
    init_wider: bool = Field(
        False, description="`init` has fewer channels: they are copied so that the network computes the same"
    )
    init_backbone: DataPath | None = Field(
        None, description="ImageNet weights of a ResNet (a torchvision state dict) for the backbone of every stage"
    )

    @model_validator(mode="before")
    @classmethod
    def _warmup_on_its_own(cls, raw: Any) -> Any:
        """``warmup: 300`` beside the rate is short for ``schedule: {warmup: 300}``."""
        if isinstance(raw, dict) and "warmup" in raw:
            warmup = raw["warmup"]
            rest = {name: value for name, value in raw.items() if name != "warmup"}
            schedule = rest.get("schedule", {})
            schedule = {"kind": schedule} if isinstance(schedule, str) else schedule
            if not isinstance(schedule, dict) or "warmup" in schedule:
                raise ValueError("warmup is given twice: here and in schedule")
            return {**rest, "schedule": {**schedule, "warmup": warmup}}
        return raw

    @field_validator("optimiser", "schedule", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        """``optimiser: adam`` is short for ``optimiser: {kind: adam}``."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> PoseRecipe:
        if self.init_wider and self.init is None:
            raise ValueError("init_wider: init names no narrower network")
        multiple = self.network.multiple
        for width, height in (self.size, *((small.width, small.height) for small in self.progressive)):
            if width % multiple or height % multiple:
                raise ValueError(
                    f"crop sides must be multiples of {multiple} for {self.network.name}, got {width}x{height}"
                )
        ends = [small.until for small in self.progressive]
        if sorted(set(ends)) != ends:
            raise ValueError(f"progressive: until must grow from size to size, got {ends}")
        if self.progressive and self.network.size:
            raise ValueError(f"progressive: {self.network.name} takes crops of {self.network.size} only")
        if self.network.size not in (None, self.size):
            raise ValueError(
                f"{self.network.name} takes crops of {self.network.size}, width and height, got {self.size}"
            )
        if self.steps and not self.data:
            raise ValueError("data: no data set to train on")
        names = [r.name for r in self.radii]
        if len(set(names)) != len(names):
            raise ValueError(f"two radii have one name: {names}")
        for preset in self.presets:
            if preset not in SKELETONS:
                raise ValueError(f"unknown preset {preset!r}; known: {sorted(SKELETONS)}")
            if missing := [j for j in SKELETONS[preset].joints if j not in self.joints.joints]:
                raise ValueError(f"preset {preset} needs joints that {self.skeleton} lacks: {missing}")
        return self

    @property
    def joints(self) -> Skeleton:
        """The skeleton the network is trained on."""
        return SKELETONS[self.skeleton]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the crop."""
        return self.width, self.height

    def size_at(self, step: int) -> tuple[int, int]:
        """Width, height of the crops of one step, counted from 0."""
        for small in self.progressive:
            if step < small.until * self.steps:
                return small.width, small.height
        return self.size

    def patch_size(self, strength: Augmentation) -> PatchSize:
        """How much of the pictures is kept for crops that vary so much; never more than they can show."""
        turned = strength.rotation > 0 and strength.rotation_probability > 0
        # The diagonal is the farthest that a turned crop reaches.
        diagonal = (self.width**2 + self.height**2) ** 0.5 / min(self.size)
        reach = min(self.patch_reach, strength.reach * (diagonal if turned else 1.0))
        return PatchSize(self.size, reach, self.patch_detail, PADDING)
