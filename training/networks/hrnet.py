"""HRNet (Sun et al. 2019): branches at strides 4 to 32 run side by side and exchange features again and again.

Modules carry the names of the published code, so that its state dicts load by name: ``conv1``, ``layer1``,
``transition1``, ``stage2.0.branches.0.0.conv1``, ``stage2.0.fuse_layers.1.0``, ``final_layer``. Residual blocks are
torchvision's, whose names are the same. :class:`HRNetBackbone` gives the finest branch's features; CCM builds on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from training.networks.base import NetworkConfig, PoseNet, Unit

# Blocks on each branch of a module, and modules in stages 2, 3, 4, as published.
_BLOCKS = 4
_MODULES = (1, 4, 3)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Exchange(nn.Module):
    """One module: blocks on every branch, then each branch receives the sum of all, brought to its resolution.

    Args:
        widths: channels of the branches, finest first; each has half the resolution of the one before.
        blocks: basic blocks on each branch.
        outputs: branches that are given on (the finest ones); the last module of the network needs only one.
    """

    def __init__(self, widths: Sequence[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w, w) for _ in range(blocks))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_resize(widths, source, target) for source in range(len(widths))) for target in range(outputs)
        )
        self.relu = nn.ReLU()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[N, C_i, H / 2^i, W / 2^i] for each branch to the same for each output."""
        own = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        mixed = []
        for layers in self.fuse_layers:
            assert isinstance(layers, nn.ModuleList)
            parts = [layer(x) for layer, x in zip(layers, own, strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            mixed.append(self.relu(total))
        return mixed


def _resize(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From branch ``source`` to the shape of branch ``target``."""
    if source == target:
        return nn.Identity()
    if source > target:
        scale = float(2 ** (source - target))
        return nn.Sequential(
            nn.Conv2d(widths[source], widths[target], 1, bias=False),
            nn.BatchNorm2d(widths[target]),
            nn.Upsample(scale_factor=scale, mode="nearest"),
        )
    steps = [_conv_bn(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _conv_bn(widths[source], widths[target], 3, 2, relu=False))


class _Branches(nn.Module):
    """What the backbone and the network share: the modules under their published names, and their forward pass."""

    def _grow(self, width: int, stem: int, blocks: int, modules: Sequence[int]) -> None:
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        wide = 4 * stem
        first = Bottleneck(stem, stem, downsample=_conv_bn(stem, wide, 1, relu=False))
        self.layer1 = nn.Sequential(first, *(Bottleneck(wide, stem) for _ in range(blocks - 1)))
        widths = [width * 2**i for i in range(4)]
        self.transition1 = _transition([wide], widths[:2])
        self.stage2 = _stage(widths[:2], blocks, modules[0])
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(widths[:3], blocks, modules[1])
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = _stage(widths, blocks, modules[2], outputs=1)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The finest branch after the last exchange, [N, width, H/4, W/4]."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer1(self.relu(self.bn2(self.conv2(x))))
        branches = [x]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch grows out of the coarsest one there is.
            sources = [*branches, *[branches[-1]] * (len(transition) - len(branches))]
            branches = stage([layer(x) for layer, x in zip(transition, sources, strict=True)])
        return branches[0]


class HRNetBackbone(_Branches):
    """Images [N, 3, H, W] to the finest branch [N, width, H/4, W/4]; sides must be multiples of 32.

    Args:
        width: channels of the finest branch: 32 and 48 as published; each coarser branch doubles them.
        stem: channels of the two strided convolutions (64 as published).
        blocks: residual blocks on each branch of a module (4 as published).
        modules: modules in stages 2, 3 and 4 ((1, 4, 3) as published).
    """

    def __init__(
        self, width: int = 32, *, stem: int = 64, blocks: int = _BLOCKS, modules: Sequence[int] = _MODULES
    ) -> None:
        super().__init__()
        self.channels = width
        self._grow(width, stem, blocks, modules)

    def forward(self, images: Tensor) -> Tensor:
        """The finest branch's features."""
        return self.features(images)


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Brings the branches of one stage to the widths of the next and grows the new, coarser one."""
    layers: list[nn.Module] = []
    for index, width in enumerate(after):
        if index >= len(before):
            layers.append(nn.Sequential(_conv_bn(before[-1], width, 3, 2)))
        elif before[index] != width:
            layers.append(_conv_bn(before[index], width, 3))
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)


def _stage(widths: Sequence[int], blocks: int, modules: int, *, outputs: int | None = None) -> nn.Sequential:
    """``modules`` exchanges; ``outputs`` of the last one, all branches where not given."""
    given = [len(widths)] * (modules - 1) + [outputs or len(widths)]
    return nn.Sequential(*(Exchange(widths, blocks, count) for count in given))


def initialise(network: nn.Module) -> None:
    """He's Gaussians for convolutions.

    The published code draws them with deviation 0.001, which is made for the ImageNet weights it then loads: from
    scratch, Adam at 1e-3 would replace such weights whole in its first step.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class HRNet(PoseNet, _Branches):
    """The backbone with a 1x1 head on its finest branch: one unit. Arguments as :class:`HRNetBackbone`.

    28.5 M parameters and 7.1 GMACs (width 32), 63.6 M and 14.6 (width 48) with 17 joints at 256x192.
    """

    def __init__(
        self,
        joints: int,
        heads: Sequence[str] = ("medium",),
        *,
        width: int = 32,
        stem: int = 64,
        blocks: int = _BLOCKS,
        modules: Sequence[int] = _MODULES,
    ) -> None:
        super().__init__(joints, heads, [Unit(0, 1)])
        self._grow(width, stem, blocks, modules)
        self.final_layer = nn.Conv2d(width, self.channels, 1)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.constant_(self.final_layer.bias, 0.0)  # type: ignore[arg-type]

    @property
    def backbones(self) -> list[nn.Module]:
        """What ImageNet weights may be loaded into: HRNet's own, whose classifier has no place here."""
        return [self]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [N, 3, H, W] to one raw map [N, R, K, H/4, W/4]."""
        return [self.split(self.final_layer(self.features(images)))]


class HRNetConfig(NetworkConfig):
    """Hyper-parameters of HRNet; the defaults are W32's. Width 16, stem 32, 2 blocks, modules [1, 1, 1]: for CPUs."""

    name: Literal["hrnet"] = "hrnet"
    width: int = Field(32, ge=8, description="channels of the finest branch: 32 or 48 as published")
    stem: int = Field(64, ge=8, description="channels of the strided convolutions in front")
    blocks: int = Field(_BLOCKS, ge=1, le=8, description="residual blocks on each branch of a module")
    modules: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(_MODULES, description="in stages 2, 3 and 4")

    @property
    def description(self) -> str:
        """For the model card."""
        return f"HRNet-W{self.width} (Sun et al. 2019), modules {'-'.join(map(str, self.modules))}"

    def build(self, joints: int, heads: Sequence[str]) -> HRNet:
        """Freshly initialised."""
        return HRNet(joints, heads, width=self.width, stem=self.stem, blocks=self.blocks, modules=self.modules)
