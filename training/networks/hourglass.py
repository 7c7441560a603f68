"""Stacked hourglass (Newell et al. 2016), the pose network of Firefly (2 stacks) and Team OKS (8 stacks).

The full width (256) is the definition that published results used: 3.43 / 6.57 / 12.86 / 25.44 M parameters
for 1 / 2 / 4 / 8 stacks and 17 joints. ``dense`` blocks (two 3x3 convolutions instead of a bottleneck) and a
narrow width make the slim form for CPUs, where few wide convolutions run faster than many thin ones.

The blocks are exchangeable: whatever maps [N, inputs, H, W] to [N, outputs, H, W] may take the residual block's place,
as Team OKS did with blocks found by a search.

One trunk may carry several heads: one for each supervision radius. It knows nothing of losses or targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from training.initialisation import gaussian_
from training.networks.base import NetworkConfig, PoseNet, Unit
from training.networks.blocks import BlockCode, CodedBlock

# Makes a block of ``(inputs, outputs)`` channels that keeps height and width.
Block = Callable[[int, int], nn.Module]


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Pre-activation residual block: bottleneck (1x1, 3x3, 1x1) or, with ``dense``, two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, *, dense: bool = False) -> None:
        super().__init__()
        middle = outputs if dense else outputs // 2
        if dense:
            self.body = nn.Sequential(
                _norm_relu(inputs),
                nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
                _norm_relu(middle),
                nn.Conv2d(middle, outputs, 3, padding=1),
            )
        else:
            self.body = nn.Sequential(
                _norm_relu(inputs),
                nn.Conv2d(inputs, middle, 1),
                _norm_relu(middle),
                nn.Conv2d(middle, middle, 3, padding=1),
                _norm_relu(middle),
                nn.Conv2d(middle, outputs, 1),
            )
        self.skip: nn.Module = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        out: Tensor = self.skip(x) + self.body(x)
        return out


class Hourglass(nn.Module):
    """One hourglass of ``depth`` halvings; sides should be multiples of ``2 ** depth``, odd ones are rounded up.

    ``growth`` channels are added at each halving (0 in the published network): a narrow top with a wide
    bottom keeps the costly fine maps cheap.
    """

    def __init__(self, depth: int, channels: int, *, growth: int = 0, block: Block = Residual) -> None:
        super().__init__()
        deeper = channels + growth
        self.skip = block(channels, channels)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.enter = block(channels, deeper)
        self.middle = Hourglass(depth - 1, deeper, growth=growth, block=block) if depth > 1 else block(deeper, deeper)
        self.leave = block(deeper, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        low = self.leave(self.middle(self.enter(self.pool(x))))
        skip: Tensor = self.skip(x)
        out = functional.interpolate(low, scale_factor=2.0, mode="nearest")
        return skip + out[..., : skip.shape[-2], : skip.shape[-1]]


class StackedHourglass(PoseNet):
    """``stacks`` hourglasses with intermediate supervision.

    Args:
        joints: K heatmaps for each head.
        heads: names of the supervision radii, one head each.
        stacks: number of hourglasses, 1 to 8.
        width: channels C of the trunk (256 as published).
        growth: channels added at each halving inside an hourglass.
        dense: the slim form's stem, and two 3x3 convolutions in each block instead of a bottleneck.
        depth: halvings inside an hourglass.
        block: what stands at the place of the residual blocks after the stem.
    """

    def __init__(
        self,
        joints: int,
        heads: Sequence[str] = ("medium",),
        *,
        stacks: int = 2,
        width: int = 256,
        growth: int = 0,
        dense: bool = False,
        depth: int = 4,
        block: Block | None = None,
    ) -> None:
        super().__init__(joints, heads, [Unit(stack, stacks) for stack in range(stacks)])
        outputs = self.channels
        narrow = max(width // 4, 16)
        block = block or partial(Residual, dense=dense)
        self.stem = nn.Sequential(
            nn.Conv2d(3, narrow, 7, stride=2, padding=3),
            _norm_relu(narrow),
            # The slim form has no block at half resolution: it would cost a third of the whole network.
            nn.Identity() if dense else Residual(narrow, width // 2),
            nn.MaxPool2d(2),
            Residual(narrow if dense else width // 2, width // 2, dense=dense),
            Residual(width // 2, width, dense=dense),
        )
        self.hourglasses = nn.ModuleList(Hourglass(depth, width, growth=growth, block=block) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(block(width, width), nn.Conv2d(width, width, 1), _norm_relu(width)) for _ in range(stacks)
        )
        self.outputs = nn.ModuleList(nn.Conv2d(width, outputs, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.merge_outputs = nn.ModuleList(nn.Conv2d(outputs, width, 1) for _ in range(stacks - 1))
        # The deviation of torch's own uniform start. Larger ones learn more slowly: a slim hourglass had reached OKS
        # 0.80 after 300 steps on rendered crops with it (one seed), 0.71 with He's sqrt(2).
        gaussian_(self, math.sqrt(1 / 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to one raw map [N, R, K, H/4, W/4] for each stack, the last one best."""
        x = self.stem(images)
        maps: list[Tensor] = []
        for stack, hourglass in enumerate(self.hourglasses):
            features = self.features[stack](hourglass(x))
            raw = self.outputs[stack](features)
            maps.append(self.split(raw))
            if stack + 1 < len(self.hourglasses):
                x = x + self.merge_features[stack](features) + self.merge_outputs[stack](raw)
        return maps


class HourglassConfig(NetworkConfig):
    """Hyper-parameters of the stacked hourglass; the defaults are Firefly's."""

    name: Literal["hourglass"] = "hourglass"
    stacks: int = Field(2, ge=1, le=8)
    width: int = Field(256, ge=8)
    growth: int = Field(0, ge=0)
    dense: bool = False
    depth: int = Field(4, ge=1, le=6, description="halvings inside an hourglass")
    block: str | None = Field(None, description="structure code of the blocks, as a search finds them")

    @field_validator("block")
    @classmethod
    def _describes_a_block(cls, block: str | None) -> str | None:
        return None if block is None else str(BlockCode.parse(block))

    @property
    def multiple(self) -> int:
        """Stride 4 and ``depth`` halvings, of which the last may leave a rest: 384x288 works with the usual four."""
        return 4 * 2 ** (self.depth - 1)

    @property
    def description(self) -> str:
        """For the model card."""
        blocks = f", blocks {self.block}" if self.block else ""
        return f"Stacked hourglass (Newell et al. 2016), {self.stacks} stacks of {self.width} channels{blocks}"

    def build(self, joints: int, heads: Sequence[str]) -> StackedHourglass:
        """Freshly initialised."""
        return StackedHourglass(
            joints,
            heads,
            stacks=self.stacks,
            width=self.width,
            growth=self.growth,
            dense=self.dense,
            depth=self.depth,
            block=partial(CodedBlock, BlockCode.parse(self.block)) if self.block else None,
        )
