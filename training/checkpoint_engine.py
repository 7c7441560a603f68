"""An engine that runs pose checkpoints in torch: what training made can be measured before it is exported.

It answers under the names that an export would give (``pose``, ``pose_<preset>``, ``..._flip``), so that the service's
own pipeline, options included, runs over it unchanged. Detectors are answered by another engine. Every picture's and
every crop's answer is kept: an ablation asks about the same ones many times.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.crops import PADDING
from service.engines.base import Array, Engine, ModelMetadata, Tensors, TensorSpec
from service.engines.tensors import check_inputs
from service.errors import EngineUnavailable, InferenceFailed, ModelNotFound
from service.skeletons import SKELETONS, Skeleton
from training.conventions import OURS, unmirrored
from training.decoding import Refinement, decode, fuse, fused_sigma
from training.networks.base import PoseNet, normalise
from training.pose import PoseRecipe, load_pose_checkpoint
from training.targets import Radius, activate

# Crops of one forward pass; more only take more memory.
_ROWS = 64
_FLIP = "_flip"


class CheckpointEngine(Engine):
    """Pose checkpoints in torch on the CPU or a GPU, and a detector from elsewhere."""

    kind = "checkpoint"

    def __init__(
        self,
        checkpoints: Sequence[Path],
        detector: Engine | None = None,
        *,
        refinement: Refinement = "taylor",
        device: torch.device | str = "cpu",
    ) -> None:
        """Load the networks.

        Args:
            checkpoints: ``model.pt`` files; several are fused as export fuses them (one radius each).
            detector: answers every model that is not a pose model; closed by whoever opened it.
            refinement: sub-pixel decoding.
            device: where the networks run.

        Raises:
            ValueError: a file that is no pose checkpoint, or checkpoints that differ in joints or crop size.
        """
        loaded = [load_pose_checkpoint(path) for path in checkpoints]
        for path in checkpoints:
            if torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("convention", OURS) != OURS:
                raise ValueError(
                    f"{path}: imported weights, decoded otherwise than ours: export them and ask the models"
                )
        self._recipe = loaded[0][0]
        for recipe, _ in loaded[1:]:
            if (recipe.skeleton, recipe.size) != (self._recipe.skeleton, self._recipe.size):
                raise ValueError("checkpoints that are fused need the same skeleton and crop size")
        self._parts: list[tuple[PoseRecipe, PoseNet]] = [
            (recipe, network.to(device).to(memory_format=torch.channels_last).eval()) for recipe, network in loaded
        ]
        self._device, self._refinement, self._detector = torch.device(device), refinement, detector
        self._models = {meta.name: (meta, preset) for meta, preset in self._describe()}
        self._detected: dict[bytes, dict[str, Array]] = {}
        self._posed: dict[bytes, Array] = {}
        self._key = "\n".join(f"{path.resolve()} {path.stat().st_mtime_ns}" for path in checkpoints).encode()
        self._open = False

    @property
    def radii(self) -> list[Radius]:
        """All heads, in the order of ``fusion_weights``."""
        return [radius for recipe, _ in self._parts for radius in recipe.radii]

    async def start(self) -> None:
        """Starts the detector's engine too."""
        if self._detector is not None:
            await self._detector.start()
        self._open = True

    async def infer(self, model: str, inputs: Tensors, *, timeout: float | None = None) -> dict[str, Array]:
        """Run one request; see :meth:`Engine.infer`."""
        if not self._open:
            raise EngineUnavailable("the engine is not open")
        if model not in self._models:
            return await self._detect(model, inputs, timeout)
        metadata, preset = self._models[model]
        check_inputs(metadata, inputs)
        keypoints = await asyncio.to_thread(self._pose, inputs, preset, model.endswith(_FLIP))
        if not np.isfinite(keypoints).all():
            raise InferenceFailed(f"{model} answered numbers that are not finite")
        return {"keypoints": keypoints}

    async def models(self) -> list[str]:
        """Names, sorted."""
        others = await self._detector.models() if self._detector is not None else []
        return sorted({*others, *self._models})

    async def metadata(self, model: str) -> ModelMetadata:
        """The model's config. Raises ModelNotFound."""
        if model in self._models:
            return self._models[model][0]
        if self._detector is None:
            raise ModelNotFound(f"model {model!r} is not loaded; there are {sorted(self._models)}")
        return await self._detector.metadata(model)

    async def ready(self) -> bool:
        """True between ``start`` and ``close``."""
        return self._open

    async def close(self) -> None:
        """The networks stay loaded, and what was detected stays known: it may be started again."""
        self._open = False

    def refine(self, refinement: Refinement) -> None:
        """Decode the peaks another way from now on."""
        self._refinement = refinement

    def remember(self, other: CheckpointEngine) -> None:
        """Take over what another engine with the same detector has answered."""
        self._detected, self._posed = other._detected, other._posed

    async def _detect(self, model: str, inputs: Tensors, timeout: float | None) -> dict[str, Array]:
        if self._detector is None:
            raise ModelNotFound(f"model {model!r} is not loaded; there are {sorted(self._models)}")
        answers = []
        for index in range(_rows(inputs)):
            row = {name: array[index : index + 1] for name, array in inputs.items()}
            key = _digest(model.encode(), *(row[name] for name in sorted(row)))
            if key not in self._detected:
                self._detected[key] = await self._detector.infer(model, row, timeout=timeout)
            answers.append(self._detected[key])
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _pose(self, inputs: Tensors, preset: Skeleton, flip: bool) -> Array:
        crops, weights = np.ascontiguousarray(inputs["crops"]), np.ascontiguousarray(inputs["fusion_weights"])
        how = f"{preset.name} {flip} {self._refinement}".encode()
        keys = [_digest(self._key, how, crop, share) for crop, share in zip(crops, weights, strict=True)]
        new = [index for index, key in enumerate(keys) if key not in self._posed]
        for start in range(0, len(new), _ROWS):
            rows = new[start : start + _ROWS]
            images, shares = (torch.from_numpy(array[rows]).to(self._device) for array in (crops, weights))
            for index, answer in zip(rows, self._part(images, shares, preset, flip), strict=True):
                self._posed[keys[index]] = answer
        return np.array([self._posed[key] for key in keys], np.float32).reshape(-1, len(preset), 3)

    @torch.no_grad()
    def _part(self, crops: Tensor, weights: Tensor, preset: Skeleton, flip: bool) -> Array:
        maps = self._heatmaps(crops)
        if flip:
            partners = list(self._recipe.joints.flip_permutation)
            mirrored = self._heatmaps(crops.flip(2))
            maps = [(a + unmirrored(b, partners)) / 2 for a, b in zip(maps, mirrored, strict=True)]
        rows = list(preset.indices_in(self._recipe.joints))
        fused = fuse([each[:, rows] for each in maps], weights)
        sigma = fused_sigma([radius.sigma for radius in self.radii])
        answer: Array = decode(fused, self._parts[0][1].stride, self._refinement, sigma=sigma).float().cpu().numpy()
        return answer

    def _heatmaps(self, crops: Tensor) -> list[Tensor]:
        images = normalise(crops).contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for recipe, network in self._parts:
            raw = network(images)[-1]  # float32, as it is served
            maps += [activate(raw[:, index], radius) for index, radius in enumerate(recipe.radii)]
        return maps

    def _describe(self) -> list[tuple[ModelMetadata, Skeleton]]:
        width, height = self._recipe.size
        inputs = (
            TensorSpec("crops", "uint8", (height, width, 3)),
            TensorSpec("fusion_weights", "float32", (len(self.radii),)),
        )
        described = []
        for index, preset_name in enumerate(self._recipe.presets):
            preset = SKELETONS[preset_name]
            name = "pose" if index == 0 else f"pose_{preset.name}"
            parameters = {
                "skeleton": preset.to_json(),
                "input_width": str(width),
                "input_height": str(height),
                "radii": ",".join(radius.name for radius in self.radii),
                "detector": "person_detector",
                "padding": f"{PADDING:g}",
                "score_threshold": "0.2",
            }
            output = (TensorSpec("keypoints", "float32", (len(preset), 3)),)
            for model, extra in (
                (name, {"kind": "pose", "flip_model": name + _FLIP}),
                (name + _FLIP, {"kind": "part"}),
            ):
                metadata = ModelMetadata(model, (1,), "torch", _ROWS, inputs, output, {**parameters, **extra})
                described.append((metadata, preset))
        return described


def _digest(*parts: bytes | Array) -> bytes:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return whole.digest()


def _rows(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))
