"""The blocks that a search may build: which layers can stand where, a random block, how many blocks there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, field_validator

from training.networks.blocks import KERNELS, BlockCode, Layer, LayerType
from training.recipe import Strict

_CHOICES = {
    "conv": LayerType.CONV,
    "max": LayerType.MAX_POOL,
    "average": LayerType.AVERAGE_POOL,
    "identity": LayerType.IDENTITY,
    "add": LayerType.ADD,
    "concat": LayerType.CONCAT,
}


class SearchSpace(Strict):
    """Bounds of the blocks. BlockQNN has all types, convolutions of 1, 3 and 5, and up to 23 layers."""

    layers: int = Field(4, ge=1, le=23, description="most layers of a block, the terminal not counted")
    kernels: tuple[int, ...] = Field((1, 3), min_length=1, description="of convolutions")
    types: tuple[str, ...] = Field(tuple(_CHOICES), min_length=1)

    @field_validator("kernels")
    @classmethod
    def _known_kernels(cls, kernels: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := set(kernels) - set(KERNELS[LayerType.CONV]):
            raise ValueError(f"kernels {sorted(unknown)}: convolutions have one of {KERNELS[LayerType.CONV]}")
        return kernels

    @field_validator("types")
    @classmethod
    def _known_types(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(types) - set(_CHOICES):
            raise ValueError(f"unknown layer types {sorted(unknown)}; known: {', '.join(_CHOICES)}")
        if not {"conv", "max", "average", "identity"} & set(types):
            raise ValueError(f"types {list(types)}: the first layer needs one that reads a single layer")
        return types

    def choices(self, index: int) -> tuple[Layer, ...]:
        """Every layer that may stand at ``index`` (from 1); the terminal may not come first and must come last."""
        if index > self.layers:
            return (Layer(index, LayerType.TERMINAL),)
        found = [Layer(index, LayerType.TERMINAL)] if index > 1 else []
        for name in self.types:
            kind = _CHOICES[name]
            if kind in (LayerType.ADD, LayerType.CONCAT):
                found += [Layer(index, kind, 0, a, b) for a in range(index) for b in range(a + 1, index)]
            else:
                kernels = self.kernels if kind is LayerType.CONV else KERNELS.get(kind, (0,))
                found += [Layer(index, kind, kernel, source) for source in range(index) for kernel in kernels]
        return tuple(found)

    @property
    def size(self) -> int:
        """Number of codes; several may describe one block."""
        total, partial = 0, 1
        for index in range(1, self.layers + 2):
            # One of the choices after the first layer ends the code, the others lengthen it.
            total += partial if index > 1 else 0
            partial *= len(self.choices(index)) - (1 if index > 1 else 0)
        return total

    def random_block(self, rng: np.random.Generator) -> BlockCode:
        """Every layer drawn evenly from its choices, as the search does where it explores."""
        layers: list[Layer] = []
        while not is_complete(layers):
            choices = self.choices(len(layers) + 1)
            layers.append(choices[int(rng.integers(len(choices)))])
        return BlockCode(tuple(layers))


def is_complete(layers: Sequence[Layer]) -> bool:
    """Whether the last layer is the terminal."""
    return bool(layers) and layers[-1].type is LayerType.TERMINAL
