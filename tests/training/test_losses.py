"""If these fail, a network learns from the wrong joints or towards the wrong maps, and nothing says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from service.crops import heatmap_to_crop
from service.skeletons import Skeleton, make_skeleton
from training.batches import PoseBatch
from training.losses import binary_cross_entropy, hardest, mean_squared_error, pose_loss, spatial_cross_entropy
from training.networks.base import Unit
from training.supervision import Supervision
from training.targets import Kind, Radius

Array = npt.NDArray[np.float64]

STRIDE = 4
SKELETON = make_skeleton("three", ("nose", "left_elbow", "right_wrist"), ())
KINDS: tuple[Kind, ...] = ("gaussian", "disc", "softmax")
ONE = (Unit(0, 1),)
MSPN = tuple(Unit(stage, 2, level, 4) for stage in range(2) for level in range(4))


def _cells() -> tuple[Tensor, Tensor]:
    """Raw maps [2, 3, 16, 12] and joints in cells."""
    raw = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(3))
    points = torch.tensor([[[3.2, 5.1], [0.0, 15.0], [11.4, 7.7]], [[6.0, 6.0], [2.5, 2.5], [9.0, 1.0]]])
    return raw, points


def _batch(**fields: Any) -> PoseBatch:
    points = torch.from_numpy(heatmap_to_crop(_cells()[1].numpy(), STRIDE)).float()
    batch = PoseBatch(
        crops=torch.zeros(2, 64, 48, 3, dtype=torch.uint8),
        points=points,
        labelled=torch.ones(2, 3),
        present=torch.ones(2, 3),
        areas=torch.full((2,), 900.0),
        indices=torch.arange(2),
    )
    return replace(batch, **fields)


def _loss(
    maps: Sequence[Tensor],
    batch: PoseBatch,
    radii: Sequence[Radius],
    supervision: Supervision | None = None,
    units: Sequence[Unit] | None = None,
    skeleton: Skeleton = SKELETON,
) -> tuple[Tensor, dict[str, float]]:
    units = units or tuple(Unit(s, len(maps)) for s in range(len(maps)))
    return pose_loss(maps, units, batch, radii, supervision or Supervision(), skeleton, STRIDE)


def _maps(units: Sequence[Unit], heads: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, heads, 3, 16, 12, generator=generator).requires_grad_() for _ in units]


def _touched(maps: Tensor) -> Tensor:
    """[P, K]: joints that the gradient reaches."""
    assert maps.grad is not None
    return maps.grad.abs().sum((1, 3, 4)) > 0


def _grid(points: Array) -> Array:
    rows, columns = np.mgrid[0:16, 0:12].astype(np.float64)
    return np.asarray((columns - points[..., 0, None, None]) ** 2 + (rows - points[..., 1, None, None]) ** 2)


def _divergence(logits: Array, target: Array) -> Array:
    """[P, K] of whole maps in float64."""
    target = target / target.sum((-2, -1), keepdims=True)
    log_probability = logits - np.log(np.exp(logits).sum((-2, -1), keepdims=True))
    return np.asarray((target * (np.log(target) - log_probability)).sum((-2, -1)))


def test_spatial_cross_entropy_is_the_divergence_of_whole_maps() -> None:
    raw, points = _cells()
    expected = _divergence(raw.double().numpy(), np.exp(-_grid(points.double().numpy()) / (2 * 1.5**2)))
    found = spatial_cross_entropy(raw, points, torch.ones(2, 3), 1.5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_mean_squared_error_and_binary_cross_entropy_match_closed_forms() -> None:
    raw, points = _cells()
    everyone = torch.ones(2, 3)
    squared = _grid(points.double().numpy())
    logits = raw.double().numpy()
    gaussian = np.exp(-squared / (2 * 2.0**2))
    np.testing.assert_allclose(
        mean_squared_error(raw, points, everyone, 2.0).numpy(),
        ((logits - gaussian) ** 2).sum((-2, -1)) / (math.pi * 4),
        rtol=1e-4,
    )
    disc = (squared <= 4).astype(np.float64)
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(disc * np.log(probability) + (1 - disc) * np.log(1 - probability)).sum((-2, -1))
    found = binary_cross_entropy(raw, points, everyone, 2.0)
    np.testing.assert_allclose(found.numpy(), entropy / (math.pi * 4), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_unlabelled_joints_give_no_gradient(kind: Kind) -> None:
    batch = _batch(labelled=torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))
    batch.points[0, 1] = float("nan")  # a place nobody wrote down
    (maps,) = _maps(ONE)
    loss, _ = _loss([maps], batch, [Radius(name="r", kind=kind, sigma=2.0)])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(_touched(maps), batch.labelled > 0)


def test_every_stack_and_every_radius_is_supervised() -> None:
    units = [Unit(s, 3) for s in range(3)]
    stacks = _maps(units, heads=2)
    radii = [Radius(name="large", kind="gaussian", sigma=3.0), Radius(name="small", kind="disc", sigma=1.5)]
    loss, values = _loss(stacks, _batch(), radii)
    loss.backward()
    assert set(values) == {"loss/large", "loss/small"}
    for maps in stacks:
        assert maps.grad is not None
        assert bool((maps.grad.abs().sum((0, 2, 3, 4)) > 0).all())
