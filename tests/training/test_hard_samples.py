"""If these fail, later stages train on the wrong people: easy ones, or none, and no curve shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from service.crops import heatmap_to_crop
from service.oks import pairwise_oks
from service.skeletons import COCO17
from training.batches import PoseBatch
from training.hard_samples import crop_oks, hard_samples, stage_oks
from training.losses import pose_loss
from training.networks.base import Unit
from training.supervision import Supervision
from training.targets import Kind, Radius, gaussian_maps

RADII = (Radius(name="large", kind="softmax", sigma=2.0), Radius(name="small", kind="softmax", sigma=1.0))


def _batch(people: int = 4) -> PoseBatch:
    generator = torch.Generator().manual_seed(11)
    cells = torch.rand(people, 17, 2, generator=generator) * torch.tensor([40.0, 56.0]) + 4
    return PoseBatch(
        crops=torch.zeros(people, 256, 192, 3, dtype=torch.uint8),
        points=torch.from_numpy(heatmap_to_crop(cells.numpy(), 4)).float(),
        labelled=torch.ones(people, 17),
        present=torch.ones(people, 17),
        areas=torch.linspace(4_000, 20_000, people),
        indices=torch.arange(people),
    )


def _drawn(points: Tensor, kinds: tuple[Radius, ...] = RADII) -> Tensor:
    """Raw maps [P, R, K, 64, 48] of a network that sees the joints at these crop pixels."""
    cells = (points + 0.5) / 4 - 0.5
    maps = [gaussian_maps(cells, (64, 48), radius.sigma) for radius in kinds]
    raw = [m.clamp_min(1e-12).log() if r.kind == "softmax" else m for m, r in zip(maps, kinds, strict=True)]
    return torch.stack(raw, 1)


def test_crop_oks_is_the_services_oks() -> None:
    batch = _batch()
    labelled = (torch.rand(4, 17, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    labelled[:, 0] = 1
    batch.points[labelled == 0] = float("nan")
    found = batch.points.nan_to_num(0.0) + torch.randn(4, 17, 2, generator=torch.Generator().manual_seed(3)) * 6
    batch = PoseBatch(batch.crops, batch.points, labelled, batch.present, batch.areas, batch.indices)
    truth = batch.points.nan_to_num(0.0).double().numpy()
    every = pairwise_oks(truth, found.double().numpy(), batch.areas.numpy()[:, None], COCO17.sigmas, labelled > 0)
    np.testing.assert_allclose(crop_oks(found, batch, COCO17.sigmas).numpy(), np.diag(every), rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "gaussian"])
def test_a_stage_is_judged_by_what_it_would_be_served_with(kind: Kind) -> None:
    radii = (Radius(name="large", kind=kind, sigma=2.0), Radius(name="small", kind=kind, sigma=1.0))
    batch = _batch()
    wrong = batch.points + torch.tensor([0.0, 2.0, 6.0, 20.0])[:, None, None]
    oks = stage_oks(_drawn(wrong, radii), batch, radii, COCO17.sigmas, 4)
    truth, answer = batch.points.double().numpy(), wrong.double().numpy()
    expected = np.diag(pairwise_oks(truth, answer, batch.areas.numpy()[:, None], COCO17.sigmas))
    np.testing.assert_allclose(oks.numpy(), expected, atol=0.02)
    assert oks[0] > 0.99 and oks[3] < 0.4


def test_a_crop_without_a_known_joint_stays() -> None:
    oks = torch.tensor([0.9, 0.8, 0.79, float("nan")])
    assert hard_samples(oks, 0.8).tolist() == [False, False, True, True]


def _trained(
    first: Tensor, batch: PoseBatch, thresholds: tuple[float, ...], stages: int = 2
) -> tuple[list[Tensor], dict[str, float], Tensor]:
    """Whether each stage's maps get a gradient from each sample, [P] a stage; the values; the loss."""
    generator = torch.Generator().manual_seed(7)
    later = [torch.randn(first.shape, generator=generator) for _ in range(stages - 1)]
    maps = [m.requires_grad_() for m in (first, *later)]
    units = [Unit(s, stages) for s in range(stages)]
    loss, values = pose_loss(maps, units, batch, RADII, Supervision(hard_samples=thresholds), COCO17, 4)
    loss.backward()
    gradients = [m.grad for m in maps if m.grad is not None]
    assert len(gradients) == stages and all(bool(g.isfinite().all()) for g in gradients)
    return [g.abs().sum((1, 2, 3, 4)) > 1e-6 for g in gradients], values, loss


def test_the_second_stage_trains_on_the_people_the_first_got_wrong() -> None:
    batch = _batch()
    noise = 0.3 * torch.randn(4, 2, 17, 64, 48, generator=torch.Generator().manual_seed(9))
    raw = _drawn(batch.points + torch.tensor([1.0, 25.0, 0.0, 25.0])[:, None, None]) + noise
    (first, second), values, _ = _trained(raw, batch, (0.8,))
    assert first.all()
    assert second.tolist() == [False, True, False, True]
    assert values["hard_samples/stage2"] == 0.5
    # Without the rule everyone trains every stage.
    (_, everyone), values, _ = _trained(raw.detach(), batch, ())
    assert everyone.all() and "hard_samples/stage2" not in values


def test_hard_people_weigh_as_they_do_without_the_rule() -> None:
    batch = _batch()
    raw = _drawn(batch.points + torch.tensor([0.0, 25.0, 0.0, 0.0])[:, None, None])
    second = torch.randn(4, 2, 17, 64, 48, generator=torch.Generator().manual_seed(7))
    gradients = []
    for thresholds in ((0.8,), ()):
        later = second.clone().requires_grad_()
        supervision = Supervision(hard_samples=thresholds)
        pose_loss([raw, later], [Unit(0, 2), Unit(1, 2)], batch, RADII, supervision, COCO17, 4)[0].backward()
        assert later.grad is not None
        gradients.append(later.grad[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_step_without_hard_people_trains_the_first_stage_alone() -> None:
    batch = _batch()
    (_, second), values, loss = _trained(_drawn(batch.points), batch, (0.8,))
    assert not second.any()
    assert values["hard_samples/stage2"] == 0
    assert torch.isfinite(loss)


def test_each_stage_has_its_own_threshold() -> None:
    batch = _batch()
    # Off by so much that OKS is between the thresholds: the second stage learns, a third of the same answer does not.
    middling = batch.points + batch.areas.sqrt()[:, None, None] * 0.07
    oks = crop_oks(middling, batch, COCO17.sigmas)
    assert bool(((oks > 0.6) & (oks < 0.8)).all())
    maps = [_drawn(middling).requires_grad_() for _ in range(3)]
    units = [Unit(s, 3) for s in range(3)]
    pose_loss(maps, units, batch, RADII, Supervision(hard_samples=(0.8, 0.6)), COCO17, 4)[0].backward()
    gradients = [float(m.grad.abs().sum()) for m in maps if m.grad is not None]
    assert gradients[0] > 0 and gradients[1] > 0 and gradients[2] == 0


def test_a_false_box_trains_every_stage() -> None:
    batch = _batch()
    batch.present[2] = 0
    (_, second), values, _ = _trained(_drawn(batch.points), batch, (0.8,))
    assert second.tolist() == [False, False, True, False]
    assert values["hard_samples/stage2"] == 0  # of the crops that have an OKS


def test_all_levels_of_a_stage_follow_its_samples() -> None:
    batch = _batch()
    raw = _drawn(batch.points + torch.tensor([0.0, 25.0, 0.0, 25.0])[:, None, None])
    units = [Unit(stage, 2, level, 2) for stage in range(2) for level in range(2)]
    blank = [torch.zeros_like(raw).requires_grad_() for _ in range(3)]
    # The coarse level of the first stage sees nothing; its finest is what decides.
    maps = [blank[0], raw, blank[1], blank[2]]
    pose_loss(maps, units, batch, RADII, Supervision(hard_samples=(0.8,)), COCO17, 4)[0].backward()
    touched = [(b.grad.abs().sum((1, 2, 3, 4)) > 0).tolist() for b in blank if b.grad is not None]
    assert touched == [[True] * 4, [False, True, False, True], [False, True, False, True]]
