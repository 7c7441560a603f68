"""Blocks written as structure codes (BlockQNN: Zhong et al. 2018), and the modules they describe.

A code is a list of layers, each five numbers: index, type, kernel, first and second predecessor. Layer 0 is the
block's input. ``"1,1,3,0,0 2,1,3,1,0 3,5,0,0,2 4,7,0,0,0"`` is the dense residual block: a 3x3 convolution of the
input, a 3x3 convolution of that, the sum of input and second convolution, the end. Layers that nothing follows are
concatenated to be the block's result.

Two rules beyond the paper, so that every code fits every place of a network: concatenations are brought back to the
block's width by a 1x1 convolution, and an input of another width by one in front. Convolutions are pre-activation
(norm, ReLU, convolution), as in the hourglass whose blocks these replace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor, cat, nn


class LayerType(IntEnum):
    """The paper's numbers."""

    CONV = 1
    MAX_POOL = 2
    AVERAGE_POOL = 3
    IDENTITY = 4
    ADD = 5
    CONCAT = 6
    TERMINAL = 7


KERNELS = {LayerType.CONV: (1, 3, 5), LayerType.MAX_POOL: (3,), LayerType.AVERAGE_POOL: (3,)}
_BINARY = (LayerType.ADD, LayerType.CONCAT)
_WORDS = {
    LayerType.CONV: "conv",
    LayerType.MAX_POOL: "max",
    LayerType.AVERAGE_POOL: "average",
    LayerType.IDENTITY: "identity",
    LayerType.ADD: "add",
    LayerType.CONCAT: "concat",
    LayerType.TERMINAL: "end",
}


class BlockError(ValueError):
    """A block code that describes no block; says which layer and why."""


@dataclass(frozen=True, order=True)
class Layer:
    """One layer of a code. ``kernel`` is 0 where the type has none, as are predecessors it does not take."""

    index: int
    type: LayerType
    kernel: int = 0
    first: int = 0
    second: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        """Indices of the layers it reads."""
        if self.type is LayerType.TERMINAL:
            return ()
        return (self.first, self.second) if self.type in _BINARY else (self.first,)

    def __str__(self) -> str:
        return f"{self.index},{int(self.type)},{self.kernel},{self.first},{self.second}"

    @property
    def words(self) -> str:
        """For people: ``2 conv3(1)``."""
        kernel = str(self.kernel) if self.kernel else ""
        sources = f"({','.join(map(str, self.sources))})" if self.sources else ""
        return f"{self.index} {_WORDS[self.type]}{kernel}{sources}"

    def check(self) -> None:
        """Raises BlockError when its numbers do not fit its type and place."""
        kernels = KERNELS.get(self.type, (0,))
        if self.kernel not in kernels:
            raise BlockError(f"layer {self}: kernel {self.kernel} of {_WORDS[self.type]}, one of {kernels} expected")
        for source in self.sources:
            if not 0 <= source < self.index:
                raise BlockError(f"layer {self}: predecessor {source} is not among 0 to {self.index - 1}")
        if self.type in _BINARY and self.first >= self.second:
            raise BlockError(f"layer {self}: {_WORDS[self.type]} takes two layers, the lower index first")
        if (self.type not in _BINARY and self.second) or (self.type is LayerType.TERMINAL and self.first):
            raise BlockError(f"layer {self}: {_WORDS[self.type]} takes fewer predecessors, write 0")


@dataclass(frozen=True)
class BlockCode:
    """A whole block: at least one layer and the terminal. Checked when made. Raises BlockError."""

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if len(self.layers) < 2:
            raise BlockError(f"block code {str(self)!r}: a block has at least one layer and the terminal")
        for expected, layer in enumerate(self.layers, start=1):
            if layer.index != expected:
                raise BlockError(f"layer {layer}: index {expected} expected at this place")
            if (layer.type is LayerType.TERMINAL) != (expected == len(self.layers)):
                raise BlockError(f"layer {layer}: the terminal ({int(LayerType.TERMINAL)}) stands at the end, once")
            layer.check()

    @classmethod
    def parse(cls, text: str) -> BlockCode:
        """Read the text of :meth:`__str__`. Raises BlockError naming the part that does not fit."""
        layers = []
        for part in text.split():
            try:
                index, kind, kernel, first, second = (int(number) for number in part.split(","))
                layers.append(Layer(index, LayerType(kind), kernel, first, second))
            except ValueError as error:
                raise BlockError(
                    f"block code {text!r}: {part!r} is not index,type,kernel,predecessor,predecessor: {error}"
                ) from error
        return cls(tuple(layers))

    def __str__(self) -> str:
        return " ".join(map(str, self.layers))

    @property
    def words(self) -> str:
        """For people: ``1 conv3(0), 2 conv3(1), 3 add(0,2), end``."""
        return ", ".join([*(layer.words for layer in self.layers[:-1]), "end"])

    @property
    def loose_ends(self) -> tuple[int, ...]:
        """Layers that nothing follows; the input is none."""
        followed = {source for layer in self.layers for source in layer.sources}
        return tuple(layer.index for layer in self.layers[:-1] if layer.index not in followed)

    @property
    def density(self) -> float:
        """Connections for each node of the graph, input and result included (the paper's measure of complexity)."""
        edges = sum(len(layer.sources) for layer in self.layers) + len(self.loose_ends)
        return edges / (len(self.layers) + 1)


RESIDUAL = BlockCode.parse("1,1,3,0,0 2,1,3,1,0 3,5,0,0,2 4,7,0,0,0")


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(inplace=False), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    )


class Add(nn.Module):
    """Sum of two tensors of one shape."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, C, H, W] twice to once."""
        return first + second


class Concat(nn.Module):
    """Any number of tensors of ``width`` channels side by side, back to ``width`` by a 1x1 convolution."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.reduce = _convolution(count * width, width, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        """``count`` times [N, width, H, W] to once."""
        joined: Tensor = self.reduce(cat(parts, dim=1))
        return joined


class CodedBlock(nn.Module):
    """The module of a code: [N, inputs, H, W] to [N, outputs, H, W], all layers ``outputs`` wide."""

    def __init__(self, code: BlockCode, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.layers = nn.ModuleList(_module(layer, outputs) for layer in code.layers[:-1])
        self.sources = tuple(layer.sources for layer in code.layers[:-1])
        self.ends = code.loose_ends
        self.leave = nn.Identity() if len(self.ends) == 1 else Concat(len(self.ends), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """All layers in the order of the code, then the loose ends joined."""
        values = [self.enter(x)]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            values.append(layer(*(values[i] for i in sources)))
        result: Tensor = self.leave(*(values[i] for i in self.ends))
        return result


def _module(layer: Layer, width: int) -> nn.Module:
    match layer.type:
        case LayerType.CONV:
            return _convolution(width, width, layer.kernel)
        case LayerType.MAX_POOL:
            return nn.MaxPool2d(layer.kernel, 1, layer.kernel // 2)
        case LayerType.AVERAGE_POOL:
            return nn.AvgPool2d(layer.kernel, 1, layer.kernel // 2, count_include_pad=False)
        case LayerType.ADD:
            return Add()
        case LayerType.CONCAT:
            return Concat(2, width)
        case _:
            return nn.Identity()
