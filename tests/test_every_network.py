"""A network counts when it is trained, exported and served. If these fail, the service answers other joints than it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app as command
from service.app import create_app
from service.crops import box_crop_matrices, crop_people
from service.engines.config import read_repository
from service.engines.embedded import EmbeddedEngine
from service.settings import Settings
from service.skeletons import SKELETONS
from tests.loadtest.stand_in import write_repository
from tests.overfitting import Sixteen, overfit
from training.datasets.coco import read_rgb
from training.decoding import Refinement, decode, fuse, fused_sigma
from training.networks.base import PoseNet, normalise
from training.networks.registry import NETWORKS
from training.pose import load_pose_checkpoint
from training.pose_recipe import PoseRecipe
from training.targets import activate

Array = npt.NDArray[np.float64]
NEAR = 0.5  # crop pixels
# The first four: enough to be several in one request.
ASKED = 4
SEPARATE: list[dict[str, Any]] = [
    {"name": "large", "kind": "softmax", "sigma": 2.0},
    {"name": "small", "kind": "softmax", "sigma": 1.0},
]


async def export(checkpoints: Sequence[Path], folder: Path, data: Sixteen, *options: str) -> Path:
    """Run the command; beside the exported models stands a detector that nobody asks, since boxes are given."""
    write_repository(folder)
    arguments = [*map(str, checkpoints), "--repository", str(folder), "--name", "trained", *options]
    checked = ("--check-data", str(data.annotations), str(data.images), "--check-count", "16")
    # In a thread: the command has an event loop of its own.
    result = await asyncio.to_thread(CliRunner().invoke, command, [*arguments, *checked])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return folder


async def ask(repository: Path, people: Sequence[tuple[Path, list[float]]], **options: str) -> list[Array]:
    """Keypoints [K, 2] of each person, one to a picture, through the HTTP interface."""
    images = [{"data": base64.b64encode(path.read_bytes()).decode(), "boxes": [box]} for path, box in people]
    # Torch cuts its crops from whole pictures.
    application = create_app(Settings(cpu_threads=1, reduced_decoding=False), EmbeddedEngine(repository))
    async with application.router.lifespan_context(application):
        await application.state.service.readiness.wait()
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://pose") as client:
            answer = await client.post(
                "/v1/pose", json={"images": images}, params={"model": "trained", **options}, timeout=60
            )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    by_image = {found["image_id"]: found for found in document["annotations"]}
    assert len(document["annotations"]) == len(by_image) == len(people)
    return [
        np.array(by_image[image["id"]]["keypoints"], np.float64).reshape(-1, 3)[:, :2] for image in document["images"]
    ]


@torch.no_grad()
def predict(
    parts: Sequence[tuple[PoseRecipe, PoseNet]],
    person: tuple[Path, list[float]],
    weights: Sequence[float],
    *,
    flip: bool,
    refinement: Refinement,
) -> tuple[Array, float]:
    """What torch finds: keypoints [K, 2] of the picture, and crop pixels for each picture pixel."""
    path, (x, y, width, height) = person
    recipe = parts[0][0]
    matrices = box_crop_matrices(np.array([[x, y, x + width, y + height]]), recipe.size)
    crops = torch.from_numpy(crop_people(read_rgb(path), matrices, recipe.size))
    maps = _maps(parts, crops)
    if flip:
        mirrored = _maps(parts, crops.flip(2))
        partners = list(recipe.joints.flip_permutation)
        maps = [(a + b[:, partners].flip(-1)) / 2 for a, b in zip(maps, mirrored, strict=True)]
    fused = fuse([m.double() for m in maps], torch.tensor([list(weights)], dtype=torch.float64))
    sigma = fused_sigma([radius.sigma for part, _ in parts for radius in part.radii])
    found = decode(fused, parts[0][1].stride, refinement, sigma=sigma)[0, :, :2].numpy()
    inverse = np.linalg.inv(np.vstack([matrices[0], [0, 0, 1]]))[:2]
    preset = [recipe.joints.joints.index(joint) for joint in SKELETONS[recipe.presets[0]].joints]
    return found[preset] @ inverse[:, :2].T + inverse[:, 2], float(matrices[0][0, 0])


def _maps(parts: Sequence[tuple[PoseRecipe, PoseNet]], crops: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for recipe, network in parts:
        raw = network(normalise(crops))[-1]
        maps += [activate(raw[:, index], radius) for index, radius in enumerate(recipe.radii)]
    return maps


async def agree(
    repository: Path,
    checkpoints: Sequence[Path],
    data: Sixteen,
    weights: Sequence[float],
    options: Mapping[str, str],
    refinement: Refinement = "taylor",
) -> None:
    """The service and torch name the same places."""
    people = data.people()[:ASKED]
    parts = [load_pose_checkpoint(path) for path in checkpoints]
    answers = await ask(repository, people, **options)
    for person, answer in zip(people, answers, strict=True):
        expected, scale = predict(parts, person, weights, flip="flip" in options, refinement=refinement)
        assert np.linalg.norm(answer - expected, axis=1).max() * scale < NEAR, person


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
async def test_what_was_trained_is_what_the_service_answers(
    name: str, overfitted: Callable[[str], Path], people16: Sixteen, tmp_path: Path
) -> None:
    checkpoint = overfitted(name)
    repository = await export([checkpoint], tmp_path / "models", people16)
    await agree(repository, [checkpoint], people16, (1, 1), {})
    await agree(repository, [checkpoint], people16, (0, 1), {"fusion": "0,1", "flip": "true"})


@pytest.mark.slow
async def test_separate_networks_are_fused_by_the_requests_weights(people16: Sixteen, tmp_path: Path) -> None:
    checkpoints = [
        overfit("hourglass", people16, tmp_path / radius["name"], radii=[radius], steps=100, seed=seed)
        for seed, radius in enumerate(SEPARATE)
    ]
    repository = await export(checkpoints, tmp_path / "models", people16, "--refine", "dark")
    parameters = read_repository(repository)["trained"].metadata.parameters
    assert (parameters["radii"], parameters["refinement"]) == ("large,small", "dark")
    for weights in ((1, 0), (0, 1), (1, 1)):
        await agree(repository, checkpoints, people16, weights, {"fusion": f"{weights[0]},{weights[1]}"}, "dark")
