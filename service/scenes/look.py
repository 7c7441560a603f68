"""What a person wears and looks like: colours, hair, and the cut and pattern of the clothes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]

_SKINS: tuple[Colour, ...] = (
    (246, 214, 190),
    (236, 196, 166),
    (222, 176, 142),
    (200, 150, 112),
    (172, 122, 86),
    (136, 92, 62),
    (100, 66, 46),
    (74, 50, 38),
)
_HAIRS: tuple[Colour, ...] = (
    (28, 24, 22),
    (28, 24, 22),
    (52, 36, 26),
    (84, 58, 38),
    (120, 84, 50),
    (178, 140, 84),
    (212, 182, 122),
    (150, 72, 36),
    (150, 148, 146),
    (216, 214, 212),
)
_NEUTRALS: tuple[Colour, ...] = (
    (34, 36, 40),
    (60, 62, 66),
    (110, 112, 114),
    (236, 234, 230),
    (200, 196, 186),
    (38, 50, 84),
    (62, 84, 128),
    (92, 112, 146),
    (104, 86, 66),
    (150, 128, 96),
    (74, 80, 58),
)


@dataclass(frozen=True)
class Look:
    """One person's colours (RGB) and clothes.

    ``sleeve`` and ``leg`` are the covered share of the arm and leg, 0..1; ``hair_style`` is one of ``short``,
    ``long``, ``bun``, ``bald``, ``cap``; ``pattern`` one of ``plain``, ``stripes``, ``hoops``, ``checks``, ``dots``,
    ``print``.
    """

    skin: Colour
    hair: Colour
    hair_style: str
    beard: bool
    glasses: bool
    shirt: Colour
    accent: Colour
    pattern: str
    sleeve: float
    tucked: bool
    trousers: Colour
    leg: float
    skirt: float
    shoes: Colour
    looseness: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> Look:
        """Draw a look. Colours are half bright, half the greys, blues and browns most clothes have."""
        skirt = rng.random() < 0.14
        return cls(
            skin=_vary(rng, _SKINS[rng.integers(len(_SKINS))], 8),
            hair=_vary(rng, _HAIRS[rng.integers(len(_HAIRS))], 8),
            hair_style=str(rng.choice(["short", "long", "bun", "bald", "cap"], p=[0.46, 0.27, 0.07, 0.07, 0.13])),
            beard=not skirt and rng.random() < 0.15,
            glasses=rng.random() < 0.12,
            shirt=cloth_colour(rng, bright=0.55),
            accent=cloth_colour(rng, bright=0.4),
            pattern=str(
                rng.choice(
                    ["plain", "stripes", "hoops", "checks", "dots", "print"], p=[0.56, 0.08, 0.12, 0.09, 0.05, 0.1]
                )
            ),
            sleeve=float(rng.choice([0.0, rng.uniform(0.2, 0.32), 1.0], p=[0.12, 0.43, 0.45])),
            tucked=rng.random() < 0.35,
            trousers=cloth_colour(rng, bright=0.2),
            leg=float(rng.choice([rng.uniform(0.2, 0.48), 0.97], p=[0.33, 0.67])) if not skirt else 0.0,
            skirt=float(rng.uniform(0.3, 1.0)) if skirt else 0.0,
            shoes=cloth_colour(rng, bright=0.25),
            looseness=float(rng.uniform(1.04, 1.28)),
        )


def cloth_colour(rng: np.random.Generator, bright: float) -> Colour:
    """A saturated colour with probability ``bright``, else a usual dark or neutral one."""
    if rng.random() >= bright:
        return _vary(rng, _NEUTRALS[rng.integers(len(_NEUTRALS))], 12)
    hue, saturation, value = rng.random() * 6, rng.uniform(0.3, 0.75), rng.uniform(0.3, 0.88)
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)  # HSV to RGB
    red, green, blue = (value * (1 - saturation * (1 - ramp)) * 255).round().astype(int)
    return int(red), int(green), int(blue)


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    shifted: npt.NDArray[np.float64] = np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255).round()
    return int(shifted[0]), int(shifted[1]), int(shifted[2])
