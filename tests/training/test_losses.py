"""If these fail, a network learns from the wrong joints or towards the wrong maps, and nothing says so."""

import math

import numpy as np
import pytest
import torch

from training.losses import binary_cross_entropy, mean_squared_error, pose_loss, spatial_cross_entropy
from training.targets import Radius


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, 3, 16, 12, generator=generator)
    points = torch.tensor([[[3.2, 5.1], [0.0, 15.0], [11.4, 7.7]], [[6.0, 6.0], [2.5, 2.5], [9.0, 1.0]]])
    return raw, points


def _grid(points: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[0:16, 0:12].astype(np.float64)
    return (columns - points[..., 0, None, None]) ** 2 + (rows - points[..., 1, None, None]) ** 2


def test_spatial_cross_entropy_is_the_divergence_of_whole_maps() -> None:
    raw, points = _example()
    target = np.exp(-_grid(points.double().numpy()) / (2 * 1.5**2))
    target /= target.sum((-2, -1), keepdims=True)
    logits = raw.double().numpy()
    log_probability = logits - np.log(np.exp(logits).sum((-2, -1), keepdims=True))
    expected = (target * (np.log(target) - log_probability)).sum((-2, -1))
    np.testing.assert_allclose(spatial_cross_entropy(raw, points, 1.5).numpy(), expected, rtol=1e-4)


def test_mean_squared_error_and_binary_cross_entropy_match_closed_forms() -> None:
    raw, points = _example()
    squared = _grid(points.double().numpy())
    logits = raw.double().numpy()
    gaussian = np.exp(-squared / (2 * 2.0**2))
    np.testing.assert_allclose(
        mean_squared_error(raw, points, 2.0).numpy(),
        ((logits - gaussian) ** 2).sum((-2, -1)) / (math.pi * 4),
        rtol=1e-4,
    )
    disc = (squared <= 4).astype(np.float64)
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(disc * np.log(probability) + (1 - disc) * np.log(1 - probability)).sum((-2, -1))
    np.testing.assert_allclose(binary_cross_entropy(raw, points, 2.0).numpy(), entropy / (math.pi * 4), rtol=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "disc", "softmax"])
def test_unlabelled_joints_give_no_gradient(kind: str) -> None:
    raw, points = _example()
    points[0, 1] = float("nan")  # a place nobody wrote down
    labelled = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    maps = raw.unsqueeze(1).requires_grad_()
    loss, _ = pose_loss([maps], points, labelled, [Radius(name="r", kind=kind, sigma=2.0)])  # type: ignore[arg-type]
    loss.backward()
    assert maps.grad is not None and torch.isfinite(loss)
    touched = maps.grad.abs().sum((1, 3, 4)) > 0
    assert torch.equal(touched, labelled > 0)


def test_every_stack_and_every_radius_is_supervised() -> None:
    raw, points = _example()
    stacks = [raw.unsqueeze(1).repeat(1, 2, 1, 1, 1).requires_grad_() for _ in range(3)]
    radii = [Radius(name="large", kind="gaussian", sigma=3.0), Radius(name="small", kind="disc", sigma=1.5)]
    loss, values = pose_loss(stacks, points, torch.ones(2, 3), radii)
    loss.backward()
    assert set(values) == {"loss/large", "loss/small"}
    for maps in stacks:
        assert maps.grad is not None
        assert bool((maps.grad.abs().sum((0, 2, 3, 4)) > 0).all())
