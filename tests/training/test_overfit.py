"""If these fail, a network cannot learn even sixteen people by heart: it, its loss or the loop around it is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.overfitting import PEOPLE
from training.datasets import read_set
from training.datasets.union import pose_samples
from training.held_out import held_out_oks
from training.networks.registry import NETWORKS
from training.pose import build_pose_network, load_pose_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_people_are_learnt_by_heart(name: str, overfitted: Callable[[str], Path]) -> None:
    recipe, network = load_pose_checkpoint(overfitted(name))
    people, _, _ = pose_samples([read_set(recipe.data[0])], recipe.joints, min_joints=1, holdout=0)
    assert len(people) == PEOPLE
    (trained,) = held_out_oks(network, recipe, people).values()
    assert trained >= 0.9
    # The measure itself can fail: a fresh network knows nobody.
    (fresh,) = held_out_oks(build_pose_network(recipe).eval(), recipe, people).values()
    assert fresh < 0.4
