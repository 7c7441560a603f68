"""If these fail, a network breaks what training, export and serving take for granted, or the table of networks lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import ROOT
from training.__main__ import app
from training.networks.base import PoseNet
from training.networks.published import PUBLISHED, Published
from training.networks.registry import NETWORKS, network_config
from training.networks.table import Row, markdown_table, measure

# One small form of every network.
TINY: dict[str, dict[str, Any]] = {
    "ccm": {"backbone": "light", "backbone_width": 8, "features": 16, "mixers": 2, "width": 16},
    "cpn": {"backbone": "light", "width": 8, "pyramid_channels": 16},
    "hourglass": {"stacks": 2, "width": 16, "dense": True},
    "hrnet": {"width": 16, "stem": 16, "blocks": 1, "modules": [1, 1, 1]},
    "mspn": {"stages": 2, "layers": (1, 1, 1, 1), "width": 8, "features": 16},
    "rsn": {"stages": 2, "layers": (1, 1, 1, 1), "width": 16, "features": 16},
    "simple_baseline": {"backbone": "light", "width": 8, "deconv_channels": 16},
}


def tiny(name: str, joints: int = 3) -> PoseNet:
    torch.manual_seed(0)
    return network_config({"name": name, **TINY[name]}).build(joints, ("large", "small"))


def first_weight(network: PoseNet) -> Tensor:
    """The weights that see the crop."""
    return next(p for p in network.parameters() if p.ndim == 4 and p.shape[1] == 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_teaches_the_stem(name: str) -> None:
    network = tiny(name)
    images = torch.randn(2, 3, 64, 64)
    for index, unit in enumerate(network.units):
        network.zero_grad()
        # Not a sum of squares: maps start near zero, and so would its gradient.
        network(images)[index].abs().sum().backward()
        gradient = first_weight(network).grad
        assert gradient is not None and float(gradient.abs().sum()) > 0, unit


@pytest.mark.parametrize("name", NETWORKS)
def test_one_crop_alone_gets_the_maps_it_gets_in_company(name: str) -> None:
    network = tiny(name).eval()
    crops = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        alone, together = network(crops[1:2]), network(crops)
    assert [tuple(m.shape) for m in alone] == [(1, 2, 3, 16, 16)] * len(network.units)
    for one, three in zip(alone, together, strict=True):
        torch.testing.assert_close(one, three[1:2], atol=1e-5 * float(three.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_in_order_and_the_last_is_served(name: str) -> None:
    units = tiny(name).units
    assert [(u.stage, u.level) for u in units] == sorted((u.stage, u.level) for u in units)
    assert units[-1].last_stage and units[-1].finest


@pytest.mark.slow  # some seconds for the largest pose networks, and detectors have to compute
@pytest.mark.parametrize("kind", ["pose", "detector"])
def test_every_network_has_the_size_that_is_published_and_that_the_docs_say(kind: str) -> None:
    rows = [Row(entry, measure(entry)) for entry in PUBLISHED if entry.kind == kind]
    off = {row.entry.label: (row.differences(), row.entry.tolerance) for row in rows}
    assert [label for label, (found, most) in off.items() if any(abs(d or 0) > most for d in found)] == [], off
    # What `python -m training networks --markdown` prints.
    assert markdown_table(rows) in (ROOT / "docs" / "networks.md").read_text()


def test_no_network_is_listed_twice() -> None:
    labels = [entry.label for entry in PUBLISHED]
    assert sorted(labels) == sorted(set(labels))


def test_a_difference_to_the_published_figure_shows() -> None:
    network = {"name": "hourglass", "stacks": 1}
    parameters, macs = Row(wrong := Published("", network, 6.86, 1.93), measure(wrong)).differences()
    assert (parameters, macs) == (pytest.approx(-0.5, abs=0.001), pytest.approx(1, abs=0.003))


def test_command_prints_the_rows_that_are_asked_for() -> None:
    entry = PUBLISHED[0]
    printed = CliRunner().invoke(app, ["networks", "--markdown", "--only", entry.label])
    assert printed.exit_code == 0, printed.output
    assert printed.output == markdown_table([Row(entry, measure(entry))])


def test_speed_of_a_given_network_is_measured() -> None:
    section = "{name: simple_baseline, backbone: light, width: 8, deconv_channels: 8}"
    arguments = ["networks", "--speed", "--batch", "2", "--network", section, "--markdown"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    assert float(printed.output.splitlines()[-1].split("|")[-2]) > 0


@pytest.mark.parametrize("section", ["{name: hourglas}", "{stacks: 99}", "[1]", "{"])
def test_a_network_that_does_not_exist_is_named(section: str) -> None:
    printed = CliRunner().invoke(app, ["networks", "--network", section])
    assert printed.exit_code == 2 and "--network" in printed.output
