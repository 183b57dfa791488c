"""The colours of the shapes world, as display values in [0, 1] (their squares are linear light)."""

from typing import NamedTuple

Colour = tuple[float, float, float]

PAINTS: dict[str, Colour] = {
    "red": (0.86, 0.09, 0.10),
    "orange": (1.00, 0.52, 0.04),
    "yellow": (1.00, 0.90, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.30, 0.90),
    "purple": (0.50, 0.14, 0.66),
    "pink": (1.00, 0.56, 0.76),
    "brown": (0.42, 0.25, 0.13),
    "black": (0.13, 0.13, 0.14),
    "white": (0.97, 0.97, 0.97),
}

_PALE, _DARK = (0.96, 0.96, 0.94), (0.22, 0.22, 0.24)
SECOND_PAINTS: dict[str, Colour] = {name: _DARK if name in ("white", "yellow") else _PALE for name in PAINTS}
"""The other colour of stripes and checks."""


class Floor(NamedTuple):
    """A colour, cut into cells of `width` by `depth`; rows are shifted by up to `shift` cells.

    `checks` darkens every second cell, `grain` varies their brightness, `joint` darkens lines of width `line` between.
    """

    colour: Colour
    width: float = 1.0
    depth: float = 1.0
    shift: float = 0.0
    checks: float = 0.0
    grain: float = 0.0
    joint: float = 0.0
    line: float = 0.06


FLOOR_STYLES: dict[str, Floor] = {
    "grey": Floor((0.70, 0.70, 0.72)),
    "beige": Floor((0.78, 0.73, 0.66)),
    "sage": Floor((0.66, 0.72, 0.66)),
    "slate": Floor((0.55, 0.59, 0.65)),
    "tiles": Floor((0.74, 0.74, 0.74), 1.1, 1.1, joint=0.28, line=0.05),
    "checker": Floor((0.78, 0.78, 0.79), 0.9, 0.9, checks=0.30),
    "wood": Floor((0.76, 0.65, 0.53), 0.5, 2.6, shift=1.0, grain=0.22, joint=0.3, line=0.04),
    "planks": Floor((0.70, 0.66, 0.60), 0.8, 3.4, shift=1.0, grain=0.18, joint=0.25, line=0.04),
}

SKY_STYLES: dict[str, tuple[Colour, Colour]] = {
    "day": ((0.86, 0.92, 0.97), (0.42, 0.64, 0.90)),
    "dawn": ((0.98, 0.88, 0.78), (0.62, 0.68, 0.86)),
    "dusk": ((0.95, 0.78, 0.72), (0.45, 0.42, 0.66)),
    "mist": ((0.90, 0.91, 0.92), (0.68, 0.71, 0.75)),
    "mint": ((0.90, 0.96, 0.93), (0.50, 0.74, 0.72)),
}
"""Colour at the horizon and high above."""
