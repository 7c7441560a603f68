"""Optimisers of the pose papers by name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from training.recipe import Strict


class Optimiser(Strict):
    """Which rule turns gradients into steps.

    * ``adamw``: decoupled weight decay, none on biases and normalisation.
    * ``adam``: weight decay as an L2 term of the gradient, on every parameter (MSPN, RSN, CPN: 1e-5).
    * ``rmsprop``: the hourglass of Newell et al.; ``sgd``: Nesterov's, with momentum. Both with L2 as ``adam``.
    """

    kind: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; adam's first beta")
    smoothing: float = Field(0.999, gt=0, lt=1, description="adam's second beta; rmsprop's alpha (0.99 there is usual)")


def make_optimiser(
    network: nn.Module, choice: Optimiser, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a network's parameters that are trained."""
    trained = [p for p in network.parameters() if p.requires_grad]
    betas = (choice.momentum, choice.smoothing)
    l2: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if choice.kind == "adam":
        return torch.optim.Adam(trained, betas=betas, fused=True, **l2)
    if choice.kind == "rmsprop":
        return torch.optim.RMSprop(trained, alpha=choice.smoothing, foreach=True, **l2)
    if choice.kind == "sgd":
        return torch.optim.SGD(trained, momentum=choice.momentum, nesterov=choice.momentum > 0, fused=True, **l2)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
