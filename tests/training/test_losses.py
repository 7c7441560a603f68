"""If these fail, a network learns from the wrong joints or towards the wrong maps, and nothing says so."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.crops import heatmap_to_crop
from service.skeletons import Skeleton, make_skeleton
from training.batches import PoseBatch
from training.losses import binary_cross_entropy, hardest, mean_squared_error, pose_loss, spatial_cross_entropy
from training.networks.base import Unit
from training.supervision import Supervision
from training.targets import Kind, Radius, activate, gaussian_maps

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


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_whole_maps_in_float64(kind: Kind) -> None:
    batch = _batch(
        labelled=torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]]), present=torch.tensor([[1.0, 1, 1], [0, 1, 1]])
    )
    (maps,) = _maps(ONE)
    _loss([maps], batch, [Radius(name="r", kind=kind, sigma=2.0)])[0].backward()
    squared, raw = _grid(_cells()[1].double().numpy()), maps.detach()[:, 0].double().numpy()
    there = batch.present.numpy()[..., None, None]
    gaussian, disc = np.exp(-squared / 8) * there, (squared <= 4) * there
    distribution = np.where(there > 0, gaussian / gaussian.sum((-2, -1), keepdims=True).clip(1e-9), 1 / (16 * 12))
    probability = np.exp(raw) / np.exp(raw).sum((-2, -1), keepdims=True)
    expected = {
        "gaussian": 2 * (raw - gaussian) / (math.pi * 4),
        "disc": (1 / (1 + np.exp(-raw)) - disc) / (math.pi * 4),
        "softmax": probability - distribution,
    }[kind]
    labelled = batch.labelled.double().numpy()
    expected *= (labelled / labelled.sum())[..., None, None]
    assert maps.grad is not None
    np.testing.assert_allclose(maps.grad[:, 0].numpy(), expected, atol=1e-6)


# Spread of OpenCV's blur windows 15, 11, 9, 7, 5 in cells; the finest is 1.
WIDTHS = (2.554, 1.952, 1.658, 1.369, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_unit_is_taught_its_own_width(kind: Kind) -> None:
    """A unit that draws exactly its window's Gaussian has nothing to learn; so for both radii."""
    batch = _batch()
    squared = torch.from_numpy(_grid(_cells()[1].double().numpy())).float()
    radii = [Radius(name="large", kind=kind, sigma=2.0), Radius(name="small", kind=kind, sigma=1.0)]
    maps = []
    for unit in MSPN:
        widths = [radius.sigma * WIDTHS[unit.level + unit.stage] for radius in radii]
        gaussians = [torch.exp(-squared / (2 * width**2)) for width in widths]
        discs = [40.0 * (squared <= width**2) - 20 for width in widths]
        drawn = {"gaussian": gaussians, "softmax": [g.clamp_min(1e-30).log() for g in gaussians], "disc": discs}[kind]
        maps.append(torch.stack(drawn, 1).requires_grad_())
    loss, _ = _loss(maps, batch, radii, Supervision(kernels=(15, 11, 9, 7, 5)), MSPN)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    plain, _ = _loss(maps, batch, radii, Supervision(), MSPN)
    assert plain.item() > 0.02


def test_units_are_averaged_by_their_weights() -> None:
    maps, batch = _maps(MSPN), _batch()
    radius = Radius(name="r", kind="gaussian", sigma=2.0, weight=3.0)
    target = np.exp(-_grid(_cells()[1].double().numpy()) / 8)
    values = [((m.detach()[:, 0].double().numpy() - target) ** 2).sum((-2, -1)).mean() / (math.pi * 4) for m in maps]
    weights = np.array([0.25, 0.25, 0.25, 1.0] * 2)
    loss, found = _loss(maps, batch, [radius], Supervision(level_weights=(0.25, 1.0)), MSPN)
    assert loss.item() == pytest.approx(3.0 * float((weights * values).sum() / weights.sum()), rel=1e-5)
    assert found["loss/r"] == pytest.approx(values[-1], rel=1e-5)
    assert _loss(maps, batch, [radius], Supervision(), MSPN)[0].item() == pytest.approx(3 * np.mean(values), rel=1e-5)


def test_hardest_keeps_the_highest_losses_of_each_person_among_the_labelled() -> None:
    each = torch.tensor([[5.0, 1.0, 4.0, 3.0], [0.1, 0.2, 0.3, 0.4], [-1e-7, 9.0, 9.0, 9.0]])
    weights = torch.tensor([[1.0, 1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    expected = [[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert hardest(each, weights, 2).tolist() == expected
    assert torch.equal(hardest(each, weights, 9), weights)


@pytest.mark.parametrize(("where", "hard"), [("finest", (3, 7)), ("last", (7,)), ("all", tuple(range(8)))])
def test_only_hard_joints_are_trained_where_asked_for(where: str, hard: tuple[int, ...]) -> None:
    batch = _batch(labelled=torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    maps = _maps(MSPN)
    radius = Radius(name="r", kind="softmax", sigma=1.5)
    supervision = Supervision.model_validate({"hard_joints": 1, "hard_joint_units": where})
    loss, values = _loss(maps, batch, [radius], supervision, MSPN)
    loss.backward()
    target = np.exp(-_grid(_cells()[1].double().numpy()) / (2 * 1.5**2))
    for index, unit in enumerate(maps):
        each = _divergence(unit.detach()[:, 0].double().numpy(), target)
        each[0, 2] = -1
        worst = np.arange(3)[None] == each.argmax(1)[:, None]
        expected = torch.from_numpy(worst) if index in hard else batch.labelled > 0
        assert torch.equal(_touched(unit), expected)
        if index == 7:
            assert values["loss/r"] == pytest.approx(each.max(1).mean(), rel=1e-4)


@pytest.mark.parametrize(("rule", "blank"), [("none", ()), ("coarse", (0, 2)), ("all_but_last", (0, 1, 2))])
def test_hidden_joints_are_background_only_where_the_recipe_says(rule: str, blank: tuple[int, ...]) -> None:
    units = (Unit(0, 2, 0, 2), Unit(0, 2, 1, 2), Unit(1, 2, 0, 2), Unit(1, 2, 1, 2))
    radius = Radius(name="r", kind="gaussian", sigma=1.5)
    visible = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    batch = _batch(visible=visible)
    maps = _maps(units)
    _loss(maps, batch, [radius], Supervision(visible_only=rule), units)[0].backward()  # type: ignore[arg-type]
    # The gradient of a squared error points from the target: 2 (raw - target), over what the mean divides by.
    empty, full = (torch.zeros(16, 12), gaussian_maps(_cells()[1], (16, 12), 1.5)[0, 1])
    for place, raw in enumerate(maps):
        assert raw.grad is not None
        target = empty if place in blank else full
        expected = 2 * (raw.detach()[0, 0, 1] - target) / (math.pi * 1.5**2) / 6 / len(units)
        torch.testing.assert_close(raw.grad[0, 0, 1], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="visible") if blank else contextlib.nullcontext():
        _loss(_maps(units), _batch(), [radius], Supervision(visible_only=rule), units)  # type: ignore[arg-type]


def test_joint_weights_shift_the_mean_towards_wrists() -> None:
    (maps,), batch = _maps(ONE), _batch(labelled=torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    radius = Radius(name="r", kind="gaussian", sigma=2.0)
    target = np.exp(-_grid(_cells()[1].double().numpy()) / 8)
    each = ((maps.detach()[:, 0].double().numpy() - target) ** 2).sum((-2, -1)) / (math.pi * 4)
    loss, _ = _loss([maps], batch, [radius], Supervision(joint_weights={"elbow": 1.2, "right_wrist": 1.5}))
    weights = batch.labelled.double().numpy() * [1.0, 1.2, 1.5]
    assert loss.item() == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_joint_has_an_empty_target(kind: Kind) -> None:
    batch = _batch(present=torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    batch.points[1] = float("nan")
    empty = torch.full((2, 1, 3, 16, 12), {"gaussian": 0.0, "disc": -30.0, "softmax": 1.7}[kind]).requires_grad_()
    loss, _ = _loss([empty], batch, [Radius(name="r", kind=kind, sigma=2.0)])
    loss.backward()
    assert torch.isfinite(loss)
    assert empty.grad is not None
    by_person = empty.grad.abs().amax((1, 2, 3, 4))
    assert by_person[1] < 1e-8 < 1e-3 < by_person[0]
    (other,) = _maps(ONE)
    _loss([other], batch, [Radius(name="r", kind=kind, sigma=2.0)])[0].backward()
    assert bool(_touched(other).all())


@pytest.mark.parametrize("kind", KINDS)
def test_trained_on_false_boxes_the_served_peak_goes_to_zero(kind: Kind) -> None:
    batch = _batch(present=torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    (maps,) = _maps(ONE)
    radius = Radius(name="r", kind=kind, sigma=1.0)
    optimizer = torch.optim.Adam([maps], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        _loss([maps], batch, [radius])[0].backward()
        optimizer.step()
    peaks = activate(maps.detach()[:, 0], radius).amax((-2, -1))
    assert float(peaks[0].min()) > 0.6
    assert float(peaks[1].max()) < 0.06


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_maps_is_that_of_their_float32_values(kind: Kind, dtype: torch.dtype) -> None:
    scale = 500.0 if kind == "gaussian" else 10_000.0
    half = [(m.detach() * scale).to(dtype).requires_grad_() for m in _maps(MSPN, heads=2)]
    whole = [m.detach().float().requires_grad_() for m in half]
    radii = [Radius(name="large", kind=kind, sigma=2.0), Radius(name="small", kind=kind, sigma=1.0)]
    supervision = Supervision(hard_joints=2, hard_samples=(0.8,))
    expected, values = _loss(whole, _batch(), radii, supervision, MSPN)
    found, same = _loss(half, _batch(), radii, supervision, MSPN)
    with torch.autocast("cpu", torch.bfloat16):
        inside, also = _loss(half, _batch(), radii, supervision, MSPN)
    # The squares, and sums over 192 cells, are beyond float16's 65,504.
    assert float(whole[0].detach().square().max()) > 65_504 and torch.isfinite(expected)
    assert found.dtype == inside.dtype == torch.float32
    assert found.item() == inside.item() == expected.item()
    assert same == also == values
    inside.backward()
    assert all(m.grad is not None and bool(m.grad.isfinite().all()) for m in half)


@given(
    labelled=st.lists(st.booleans(), min_size=6, max_size=6),
    present=st.lists(st.booleans(), min_size=6, max_size=6),
    kind=st.sampled_from(KINDS),
    top=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=40)
def test_masked_joints_never_have_a_gradient(
    labelled: list[bool], present: list[bool], kind: Kind, top: int | None
) -> None:
    batch = _batch(
        labelled=torch.tensor(labelled).reshape(2, 3).float(), present=torch.tensor(present).reshape(2, 3).float()
    )
    batch.points[(batch.labelled == 0) | (batch.present == 0)] = float("nan")
    units = (Unit(0, 2), Unit(1, 2))
    maps = _maps(units, heads=2)
    radii = [Radius(name="large", kind=kind, sigma=2.0), Radius(name="small", kind=kind, sigma=1.0)]
    loss, values = _loss(maps, batch, radii, Supervision(hard_joints=top, hard_samples=(0.8,)), units)
    loss.backward()
    assert torch.isfinite(loss) and all(math.isfinite(value) for value in values.values())
    for unit in maps:
        assert unit.grad is not None and bool(unit.grad.isfinite().all())
        assert not bool((_touched(unit) & (batch.labelled == 0)).any())
        if top != 1:
            assert torch.equal(_touched(unit), batch.labelled > 0)


_PROCESS = """
import sys, torch
from torch import distributed
from tests.training.test_losses import shared_step
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.save(shared_step(slice(rank, rank + 1)), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def shared_step(part: slice) -> tuple[Tensor, dict[str, float]]:
    """Gradient of the last unit's maps for a part of the batch, whose persons have three labels and one."""
    whole = _batch(labelled=torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
    batch = PoseBatch(*(value if (value := getattr(whole, f.name)) is None else value[part] for f in fields(whole)))
    units = (Unit(0, 2), Unit(1, 2))
    maps = [m.detach()[part].requires_grad_() for m in _maps(units)]
    supervision = Supervision(hard_joints=2, joint_weights={"elbow": 1.2})
    loss, values = _loss(maps, batch, [Radius(name="r", kind="softmax", sigma=1.5)], supervision, units)
    loss.backward()
    assert maps[-1].grad is not None
    return maps[-1].grad, values


@pytest.mark.slow
def test_two_processes_have_the_mean_over_all_their_joints(tmp_path: Path) -> None:
    """Persons of one process have more labels than those of the other: a mean of means would weigh them unlike."""
    expected, values = shared_step(slice(0, 2))
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", _PROCESS, str(rank), str(tmp_path)], cwd=root)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in range(2):
        gradient, same = torch.load(tmp_path / f"{rank}.pt")
        # The processes' gradients are averaged, so each person's must be twice what it is in one process.
        torch.testing.assert_close(gradient / 2, expected[rank : rank + 1])
        assert same == pytest.approx(values)
