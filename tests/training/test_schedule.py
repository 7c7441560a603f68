"""If these fail, a published recipe is trained with another learning rate than it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from training.optimisers import Optimiser, make_optimiser
from training.schedule import Schedule, cosine_rate


def test_mspn_warms_up_from_a_tenth_and_falls_to_nothing() -> None:
    schedule = Schedule(kind="linear", warmup=2400, start=0.1, floor=0)
    assert schedule.factor(0, 96000) == pytest.approx(0.1)
    assert schedule.factor(1200, 96000) == pytest.approx(0.55)
    assert schedule.factor(2400, 96000) == pytest.approx(1)
    assert schedule.factor((96000 + 2400) // 2, 96000) == pytest.approx(0.5)
    assert schedule.factor(96000, 96000) == 0


def test_hrnet_falls_at_parts_of_the_run_and_cpn_every_so_often() -> None:
    hrnet = Schedule(kind="steps", warmup=0, milestones=(170 / 210, 200 / 210))
    assert [hrnet.factor(s, 2100) for s in (0, 1699, 1700, 1999, 2000)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cpn = Schedule(kind="steps", warmup=0, every=60, decay=0.5)
    assert [cpn.factor(s, 400) for s in (0, 59, 60, 120, 399)] == pytest.approx([1, 1, 0.5, 0.25, 0.5**6])


def test_the_cosine_is_half_a_cosine() -> None:
    rates = [cosine_rate(s, peak=2.0, warmup=10, steps=110) for s in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[60] == pytest.approx(2 * (0.01 + 0.99 * 0.5))
    assert rates[35] == pytest.approx(2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert rates[110] == pytest.approx(0.02)
    assert Schedule(kind="constant", warmup=0).factor(77, 100) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "steps"},
        {"kind": "steps", "milestones": (0.5,), "every": 3},
        {"kind": "steps", "milestones": (0.9, 0.5)},
        {"kind": "steps", "milestones": (1.5,)},
        {"kind": "cosine", "every": 3},
    ],
)
def test_a_schedule_that_says_two_things_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Schedule.model_validate(wrong)


def _one_step(kind: str, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, both 1, after one step of rate 0.1 with gradients 2 and L2 0.5."""
    network = nn.Linear(1, 1)
    nn.init.ones_(network.weight)
    nn.init.ones_(network.bias)
    optimiser = make_optimiser(network, Optimiser(kind=kind, **more), learning_rate=0.1, weight_decay=0.5)  # type: ignore
    for _ in range(2):
        optimiser.zero_grad()
        (2 * network.weight + 2 * network.bias).sum().backward()
        optimiser.step()
    return network.weight.detach().flatten(), network.bias.detach()


def test_optimisers_are_those_of_their_papers() -> None:
    """Two steps by hand, weight decay included."""
    # SGD with Nesterov's momentum: g = 2 + 0.5 w; v = 0.9 v + g; w -= 0.1 (g + 0.9 v).
    w = v = 0.0
    w = 1.0
    for _ in range(2):
        g = 2 + 0.5 * w
        v = 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v)
    weight, bias = _one_step("sgd")
    assert weight.item() == pytest.approx(w)
    assert bias.item() == pytest.approx(w)
    # Adam: a first step is the rate whatever the gradient is; AdamW takes 0.1 * 0.5 of the weight off besides.
    g1 = 2.5
    w1 = 1 - 0.1
    g2 = 2 + 0.5 * w1
    m, s = 0.9 * 0.1 * g1 + 0.1 * g2, 0.999 * 0.001 * g1**2 + 0.001 * g2**2
    w2 = w1 - 0.1 * (m / (1 - 0.9**2)) / math.sqrt(s / (1 - 0.999**2))
    assert _one_step("adam")[0].item() == pytest.approx(w2, rel=1e-5)
    weight, bias = _one_step("adamw")
    assert bias.item() == pytest.approx(0.8, rel=1e-5)
    assert weight.item() == pytest.approx((1 * 0.95 - 0.1) * 0.95 - 0.1, rel=1e-5)
    # RMSprop, alpha 0.99: the first step is 0.1 g / (0.1 g) = 1 whatever the gradient is.
    first = 1 - 0.1 * 2.5 / math.sqrt(0.01 * 2.5**2)
    g2 = 2 + 0.5 * first
    second = first - 0.1 * g2 / math.sqrt(0.99 * 0.01 * 2.5**2 + 0.01 * g2**2)
    assert _one_step("rmsprop", smoothing=0.99)[0].item() == pytest.approx(second, rel=1e-4)
