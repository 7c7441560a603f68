"""If these fail, a block's code does not say what the block computes, and a found block is not what was found."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.graphs import export_graph
from training.networks.blocks import RESIDUAL, BlockCode, BlockError, CodedBlock
from training.networks.hourglass import HourglassConfig, StackedHourglass
from training.networks.registry import network_config
from training.search.space import SearchSpace

END = ",7,0,0,0"


def block(text: str, inputs: int = 4, outputs: int = 4) -> CodedBlock:
    torch.manual_seed(0)
    module = CodedBlock(BlockCode.parse(text), inputs, outputs)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return module.eval()


def test_codes_survive_writing_and_reading() -> None:
    rng = np.random.default_rng(0)
    space = SearchSpace(layers=6, kernels=(1, 3, 5))
    codes = {space.random_block(rng) for _ in range(300)}
    assert len(codes) > 150
    assert all(BlockCode.parse(str(code)) == code for code in codes)
    assert {layer.type for code in codes for layer in code.layers} == {1, 2, 3, 4, 5, 6, 7}
    for code in list(codes)[:60]:
        assert CodedBlock(code, 4, 6)(torch.zeros(2, 4, 5, 3)).shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least one layer"),
        ("1,7,0,0,0", "at least one layer"),
        ("1,1,3,0", "'1,1,3,0' is not index,type"),
        ("1,9,3,0,0 2" + END, "'1,9,3,0,0'.*9 is not a valid LayerType"),
        ("1,1,4,0,0 2" + END, "kernel 4 of conv, one of"),
        ("1,4,3,0,0 2" + END, "kernel 3 of identity"),
        ("1,1,3,1,0 2" + END, "predecessor 1 is not among 0 to 0"),
        ("1,1,3,0,0 3" + END, "index 2 expected"),
        ("1,1,3,0,0 2,5,0,1,0 3" + END, "the lower index first"),
        ("1,1,3,0,0 2,1,3,0,1 3" + END, "takes fewer predecessors"),
        ("1,1,3,0,0 2,1,3,1,0", "stands at the end"),
        ("1,1,3,0,0 2,7,0,0,0 3,1,3,1,0 4" + END, "stands at the end"),
    ],
)
def test_codes_of_no_block_are_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(BlockError, match=complaint):
        BlockCode.parse(text)
    with pytest.raises(ValueError, match=complaint):
        network_config({"name": "hourglass", "block": text})


def test_residual_code_is_the_residual_block() -> None:
    module = block(str(RESIDUAL))
    x = torch.randn(2, 4, 7, 6)
    (norm1, _, conv1), (norm2, _, conv2) = list(module.layers[0].children()), list(module.layers[1].children())

    def half(x: torch.Tensor, norm: nn.Module, conv: nn.Module) -> torch.Tensor:
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
        scale = norm.weight / (1 + norm.eps) ** 0.5
        active = torch.relu(x * scale[:, None, None] + norm.bias[:, None, None])
        return functional.conv2d(active, conv.weight, conv.bias, padding=1)

    expected = x + half(half(x, norm1, conv1), norm2, conv2)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_poolings_and_identity_by_hand() -> None:
    x = torch.zeros(1, 4, 3, 3)
    x[..., 0, 0] = 9.0
    maximum = torch.zeros(3, 3)
    maximum[:2, :2] = 9.0
    # The mean is over the cells that are there: 4 in a corner, 6 at a side, 9 inside.
    average = torch.tensor([[9 / 4, 9 / 6, 0], [9 / 6, 1.0, 0], [0, 0, 0]])
    torch.testing.assert_close(block("1,2,3,0,0 2" + END)(x)[0, 0], maximum)
    torch.testing.assert_close(block("1,3,3,0,0 2" + END)(x)[0, 0], average)
    torch.testing.assert_close(block("1,4,0,0,0 2" + END)(x), x)
    torch.testing.assert_close(block("1,3,3,0,0 2,5,0,0,1 3" + END)(x)[0, 0], average + x[0, 0])


def test_all_loose_ends_reach_the_result() -> None:
    code = BlockCode.parse("1,1,3,0,0 2,2,3,0,0 3,1,1,1,0 4" + END)
    assert code.loose_ends == (2, 3)
    module = block(str(code))
    x = torch.randn(1, 4, 6, 6)
    parts = [module.layers[1](x), module.layers[2](module.layers[0](x))]
    torch.testing.assert_close(module(x), module.leave.get_submodule("reduce")(torch.cat(parts, 1)))
    assert module(x).shape == x.shape


def test_density_counts_connections_for_each_node() -> None:
    # Residual: 1 + 1 + 2 connections, 1 to the result; 3 layers, input, result.
    assert RESIDUAL.density == pytest.approx(5 / 5)
    # Two convolutions of the input, both loose: 2 + 2 connections, 4 nodes.
    assert BlockCode.parse("1,1,3,0,0 2,1,3,0,0 3" + END).density == pytest.approx(4 / 4)
    assert BlockCode.parse("1,1,3,0,0 2" + END).density == pytest.approx(2 / 3)


def test_hourglass_is_built_of_the_block() -> None:
    text = "1,1,3,0,0 2,6,0,0,1 3" + END
    config = network_config({"name": "hourglass", "stacks": 1, "width": 16, "depth": 2, "dense": True, "block": text})
    assert isinstance(config, HourglassConfig) and text in config.description
    network = config.build(3, ("medium",))
    assert isinstance(network, StackedHourglass)
    # Two levels of skip, enter and leave, the bottom, and one behind the hourglass.
    assert sum(isinstance(m, CodedBlock) for m in network.modules()) == 2 * 3 + 1 + 1
    network(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_exported_block_agrees_for_any_batch() -> None:
    text = "1,3,3,0,0 2,1,3,1,0 3,6,0,0,2 4,2,3,0,0 5" + END
    module = block(text, 3, 8)
    model = export_graph(module, [torch.randn(2, 3, 8, 6)], ["x"], ["y"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 6]
    x = torch.randn(5, 3, 8, 6)
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), atol=1e-4)
