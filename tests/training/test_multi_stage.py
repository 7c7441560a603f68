"""If these fail, stages no longer see what earlier ones found, coarse units go untaught, or export breaks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.graphs import export_graph
from training.networks.base import Unit
from training.networks.multi_stage import MultiStageNet
from training.networks.registry import network_config

TINY: dict[str, dict[str, Any]] = {
    "mspn": {"name": "mspn", "stages": 2, "layers": (1, 1, 1, 1), "width": 8, "features": 16},
    "mspn basic": {
        "name": "mspn", "stages": 2, "blocks": "basic", "layers": (1, 1, 1, 1), "width": 8, "features": 16,
    },
    "rsn": {"name": "rsn", "stages": 2, "layers": (1, 1, 1, 1), "width": 16, "features": 16},
    "rsn expanded": {"name": "rsn", "layers": (1, 1, 1, 1), "width": 8, "expansion": 4, "branch": 24, "features": 16},
}  # fmt: skip


def tiny(name: str, joints: int = 3, heads: Sequence[str] = ("large", "small"), **fields: Any) -> MultiStageNet:
    torch.manual_seed(0)
    network = network_config({**TINY[name], **fields}).build(joints, heads)
    assert isinstance(network, MultiStageNet)
    return network


def figures(
    network: dict[str, Any], size: tuple[int, int] = (256, 192), joints: int = 17, heads: Sequence[str] = ("medium",)
) -> tuple[float, float]:
    """Millions of parameters and GMACs of one crop (height, width), by torch's own counter."""
    with torch.device("meta"):
        built = network_config(network).build(joints, heads).eval()
        images = torch.zeros(1, 3, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        built(images)
    return sum(p.numel() for p in built.parameters()) / 1e6, counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", TINY)
def test_every_unit_of_every_stage_draws_at_stride_4_and_every_weight_is_taught(name: str) -> None:
    network = tiny(name)
    maps = network(torch.randn(2, 3, 96, 64))
    stages = len(maps) // 4
    assert network.units == tuple(Unit(s, stages, level, 4) for s in range(stages) for level in range(4))
    assert [tuple(m.shape) for m in maps] == [(2, 2, 3, 24, 16)] * len(network.units)
    torch.stack([m.square().sum() for m in maps]).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() >= 0] == []
    for decoder in network.decoders:
        for head in decoder.heads:  # type: ignore[union-attr]
            assert float(head[1][0].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["mspn", "rsn"])
def test_each_map_alone_teaches_its_own_unit_and_none_after_it(name: str) -> None:
    network = tiny(name, prm=False) if name == "rsn" else tiny(name)
    heads = [head for decoder in network.decoders for head in decoder.heads]  # type: ignore[union-attr]
    for index in range(len(network.units)):
        network.zero_grad(set_to_none=True)
        network(torch.randn(2, 3, 64, 64))[index].square().sum().backward()
        assert [head[1][0].weight.grad is not None for head in heads] == [i == index for i in range(len(heads))]


def test_coarse_maps_come_from_coarse_features() -> None:
    network = tiny("mspn").eval()
    decoder = network.decoders[0]
    drawn: list[tuple[int, ...]] = []
    for head in decoder.heads:  # type: ignore[union-attr]
        head.register_forward_hook(lambda _m, _i, out: drawn.append(tuple(out.shape[-2:])))
    network(torch.randn(1, 3, 128, 96))
    assert drawn == [(4, 3), (8, 6), (16, 12), (32, 24)]


@pytest.mark.parametrize("name", ["mspn", "rsn"])
@pytest.mark.parametrize("way", ["down", "up"])
def test_cutting_one_way_of_the_aggregation_changes_the_next_stage_only(name: str, way: str) -> None:
    network = tiny(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        for level in range(4):
            last = getattr(network.carries[0], way)[level][1]
            kept = last.weight.clone(), last.bias.clone()
            last.weight.zero_()
            last.bias.zero_()
            after = network(images)
            last.weight.copy_(kept[0])
            last.bias.copy_(kept[1])
            for old, new in zip(before[:4], after[:4], strict=True):
                torch.testing.assert_close(new, old)
            assert float((after[-1] - before[-1]).abs().max()) > 1e-4, f"level {level}"


def test_aggregation_adds_both_ways_to_each_level_of_the_next_encoder() -> None:
    network = tiny("mspn").eval()
    seen: dict[str, Any] = {}
    network.decoders[0].register_forward_hook(lambda _m, i, o: seen.update(encoded=i[0], units=o[0]))
    network.encoders[1].register_forward_hook(lambda _m, i, o: seen.update(x=i[0], carried=i[1], features=o))
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
        carry: Any = network.carries[0]
        x = carry.cross(seen["units"][3])
        torch.testing.assert_close(seen["x"], x)
        for level in range(4):
            # Units come coarse to fine, encoder levels fine to coarse.
            added = carry.down[level](seen["encoded"][level]) + carry.up[level](seen["units"][3 - level])
            x = network.encoders[1].get_submodule(f"layer{level + 1}")(x) + added
            torch.testing.assert_close(seen["features"][level], x)


def resized_centre(align_corners: bool) -> Tensor:
    """Where the centre of one cell of the coarsest map lies in the map as given, for every cell of its columns."""
    decoder: Any = tiny("mspn", align_corners=align_corners).decoders[0]
    ramp = torch.arange(6.0).expand(1, 1, 8, 6)
    return decoder.resize(ramp, torch.zeros(1, 1, 64, 48))[0, 0, 0]


def test_coarse_maps_keep_the_pixel_centre_convention() -> None:
    fine = torch.arange(48)
    exact = ((fine + 0.5) / 8 - 0.5).clamp(0, 5)
    torch.testing.assert_close(resized_centre(align_corners=False), exact)
    # As published: the first and last centres are pinned instead, half a coarse cell off at the border.
    torch.testing.assert_close(resized_centre(align_corners=True), fine * 5 / 47)


class _Served(nn.Module):
    def __init__(self, network: MultiStageNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The served map."""
        raw: Tensor = self.network(images)[-1]
        return raw


# RSN in one stage: with untrained weights, float32 itself is off by more than this after two.
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mspn basic", {}),
        pytest.param("mspn basic", {"align_corners": True}, marks=pytest.mark.slow),
        ("rsn", {"stages": 1}),
    ],
)
def test_served_map_exports_with_a_free_batch(name: str, fields: dict[str, Any]) -> None:
    network = tiny(name, **fields)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 64, 64))  # statistics of data, as a trained network has
    served = _Served(network).eval()
    graph = export_graph(served, [torch.randn(2, 3, 64, 64)], ["images"], ["maps"])
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (2, 3):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = served(images).numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
