"""Stacked hourglass (Newell et al. 2016), the pose network of Firefly (2 stacks) and Team OKS (8 stacks).

The full width (256) is the definition that published results used: 3.43 / 6.57 / 12.86 / 25.44 M parameters
for 1 / 2 / 4 / 8 stacks with 16 heads. ``dense`` blocks (two 3x3 convolutions instead of a bottleneck) and a
narrow width make the slim form for CPUs, where few wide convolutions run faster than many thin ones.

One trunk may carry several heads: one for each supervision radius. It knows nothing of losses or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.networks.base import NetworkConfig, PoseNet, Unit


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
    """One hourglass of ``depth`` halvings; height and width must be multiples of ``2 ** depth``.

    ``growth`` channels are added at each halving (0 in the published network): a narrow top with a wide
    bottom keeps the costly fine maps cheap.
    """

    def __init__(self, depth: int, channels: int, *, growth: int = 0, dense: bool = False) -> None:
        super().__init__()
        deeper = channels + growth
        self.skip = Residual(channels, channels, dense=dense)
        self.pool = nn.MaxPool2d(2)
        self.enter = Residual(channels, deeper, dense=dense)
        self.middle: nn.Module = (
            Hourglass(depth - 1, deeper, growth=growth, dense=dense)
            if depth > 1
            else Residual(deeper, deeper, dense=dense)
        )
        self.leave = Residual(deeper, channels, dense=dense)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        low = self.leave(self.middle(self.enter(self.pool(x))))
        out: Tensor = self.skip(x) + functional.interpolate(low, scale_factor=2.0, mode="nearest")
        return out


class StackedHourglass(PoseNet):
    """``stacks`` hourglasses with intermediate supervision.

    Args:
        joints: K heatmaps for each head.
        heads: names of the supervision radii, one head each.
        stacks: number of hourglasses, 1 to 8.
        width: channels C of the trunk (256 as published).
        growth: channels added at each halving inside an hourglass.
        dense: two 3x3 convolutions in each block instead of a bottleneck.
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
    ) -> None:
        super().__init__(joints, heads, [Unit(stack, stacks) for stack in range(stacks)])
        outputs = self.channels
        narrow = max(width // 4, 16)
        self.stem = nn.Sequential(
            nn.Conv2d(3, narrow, 7, stride=2, padding=3),
            _norm_relu(narrow),
            # The slim form has no block at half resolution: it would cost a third of the whole network.
            nn.Identity() if dense else Residual(narrow, width // 2),
            nn.MaxPool2d(2),
            Residual(narrow if dense else width // 2, width // 2, dense=dense),
            Residual(width // 2, width, dense=dense),
        )
        self.hourglasses = nn.ModuleList(Hourglass(4, width, growth=growth, dense=dense) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(Residual(width, width, dense=dense), nn.Conv2d(width, width, 1), _norm_relu(width))
            for _ in range(stacks)
        )
        self.outputs = nn.ModuleList(nn.Conv2d(width, outputs, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.merge_outputs = nn.ModuleList(nn.Conv2d(outputs, width, 1) for _ in range(stacks - 1))

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

    @property
    def multiple(self) -> int:
        """Stride 4 and four halvings."""
        return 64

    @property
    def description(self) -> str:
        """For the model card."""
        return f"Stacked hourglass (Newell et al. 2016), {self.stacks} stacks of {self.width} channels"

    def build(self, joints: int, heads: Sequence[str]) -> StackedHourglass:
        """Freshly initialised."""
        return StackedHourglass(
            joints, heads, stacks=self.stacks, width=self.width, growth=self.growth, dense=self.dense
        )
