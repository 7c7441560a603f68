"""If these fail, RSN is not the published network, or its Pose Refine Machine is not in the graph."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.test_multi_stage import figures, tiny
from training.networks.rsn import PoseRefineMachine, ResidualSteps


@pytest.mark.parametrize(("stages", "millions", "gmacs"), [(1, 9.16, 2.25), (4, 38.46, 9.22)])
def test_size_and_work_of_rsn_18_are_those_of_the_published_code(stages: int, millions: float, gmacs: float) -> None:
    found = figures({"name": "rsn", "stages": stages, "prm": False})
    assert found == pytest.approx((millions, gmacs), abs=0.006)


@pytest.mark.parametrize(
    ("layers", "stages", "gmacs"),
    [
        ((3, 4, 6, 3), 1, 6.4),
        ((3, 4, 6, 3), 2, 13.9),
        ((3, 4, 6, 3), 3, 20.7),
        ((3, 4, 6, 3), 4, 29.3),
        ((3, 4, 23, 3), 1, 11.5),
    ],
)
def test_our_rsn_50_and_101_cost_what_the_paper_prints(layers: tuple[int, ...], stages: int, gmacs: float) -> None:
    found = figures({"name": "rsn", "layers": layers, "stages": stages, "expansion": 4, "branch": 24, "prm": False})
    assert found[1] == pytest.approx(gmacs, rel=0.03)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 16, 2)])
def test_residual_steps_compute_the_sums_of_the_paper(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    block = ResidualSteps(inputs, outputs, stride, branch=3).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.randn(2, inputs, 8, 6)
    with torch.no_grad():
        # Written out: a_ij is branch i after its j-th convolution, s_i its part of the first 1x1's output.
        entered = block.enter(x)
        s1, s2, s3, s4 = entered[:, 0:3], entered[:, 3:6], entered[:, 6:9], entered[:, 9:12]
        f: Any = block.steps
        a11 = f[0][0](s1)
        a21 = f[1][0](s2 + a11)
        a22 = f[1][1](a21)
        a31 = f[2][0](s3 + a21)
        a32 = f[2][1](a31 + a22)
        a33 = f[2][2](a32)
        a41 = f[3][0](s4 + a31)
        a42 = f[3][1](a41 + a32)
        a43 = f[3][2](a42 + a33)
        a44 = f[3][3](a43)
        y = block.leave(torch.cat((a11, a22, a33, a44), 1)) + block.shortcut(x)
        torch.testing.assert_close(block(x), y.clamp(min=0))
    assert y.shape == (2, outputs, 8 // stride, 6 // stride)
    assert sum(len(steps) for steps in f) == 10


def test_branches_have_26_of_64_parts_of_the_blocks_input() -> None:
    network: Any = tiny("rsn", width=64, layers=(2, 2, 2, 2), stages=1)
    encoder = network.encoders[0]
    found = [[b.steps[0][0][0].in_channels for b in getattr(encoder, f"layer{n}")] for n in (1, 2, 3, 4)]
    assert found == [[26, 26], [26, 52], [52, 104], [104, 208]]


def test_pose_refine_machine_weighs_whole_maps_and_cells() -> None:
    torch.manual_seed(0)
    machine = PoseRefineMachine(4).eval()
    maps = torch.randn(2, 4, 16, 12)
    with torch.no_grad():
        f = machine.enter(maps)
        c = machine.whole(f.clamp(min=0).mean((2, 3), keepdim=True))
        s = machine.cells(f.clamp(min=0))
        refined = machine(maps)
        torch.testing.assert_close(refined, f * (1 + c * s))
        # Cut at 0, as squared-error maps are served, it is the published f with ReLU.
        torch.testing.assert_close(refined.clamp(min=0), f.clamp(min=0) * (1 + c * s))
    assert c.shape == (2, 4, 1, 1) and s.shape == maps.shape
    assert float(refined.min()) < 0, "a logit must be able to say less than one half"


def test_pose_refine_machine_is_in_the_graph_and_can_be_left_out() -> None:
    images = torch.randn(2, 3, 64, 64)
    refined, plain = tiny("rsn").eval(), tiny("rsn", prm=False).eval()
    weights = refined.state_dict()
    plain.load_state_dict({k: v for k, v in weights.items() if not k.startswith("refine.")})
    with torch.no_grad():
        with_prm, without = refined(images), plain(images)
    for a, b in zip(with_prm[:-1], without[:-1], strict=True):
        torch.testing.assert_close(a, b)
    assert float((with_prm[-1] - without[-1]).abs().max()) > 0.01
    channels = 2 * 3  # all radii of all joints: 3x3, three 1x1 and a 9x9 depthwise, with bias and batch-norm
    extra = (9 + 3) * channels**2 + 81 * channels + 5 * 3 * channels
    assert sum(p.numel() for p in refined.parameters()) - sum(p.numel() for p in plain.parameters()) == extra
    maps: Tensor = refined.train()(images)[-1]
    maps.square().sum().backward()
    machine: Any = refined.refine
    for layer in (machine.enter[0], machine.whole[0][0], machine.whole[1][0], machine.cells[0][0], machine.cells[1]):
        assert float(layer.weight.grad.abs().sum()) > 0
