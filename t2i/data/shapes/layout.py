"""Draws scenes: which things, where they stand so that all can be seen, and the camera that holds them all."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from t2i.core.errors import UsageError, quoted
from t2i.data.shapes.scene import (
    COLOURS,
    FLAT_TOPPED,
    FLOORS,
    HALF_WIDTH,
    MATERIALS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    SKIES,
    Camera,
    Light,
    Scene,
    Thing,
    box,
    relation,
)

Kind = tuple[str, str] | Thing
"""What to draw: (colour, shape), or a `Thing` whose position does not matter yet."""

NUM_THINGS: Mapping[int, float] = {1: 50, 2: 33, 3: 10, 4: 7}
"""How often a scene has so many things: half of them one, a third two."""

Spot = tuple[float, float]

_MARGIN = 0.035  # free border of the picture
_NEAREST = {1: 3.8, 2: 4.4, 3: 4.9, 4: 5.3}  # camera distance by number of things
_FURTHEST = 7.2
_TRIES = 400
_OVERLAP = 0.3  # of the boxes of two things, of the smaller


def sample_scene(rng: random.Random, num_things: Mapping[int, float] = NUM_THINGS) -> Scene:
    """A random scene of one to four things, so many as often as `num_things` weighs them."""
    counts = sorted(num_things)
    count = rng.choices(counts, [num_things[count] for count in counts])[0]
    while True:
        wanted = rng.choices((*RELATIONS, None), (22, 22, 11, 11, 12, 22))[0] if count > 1 else None
        things = _same(rng, count) if rng.random() < (0, 0, 0.15, 0.4, 0.4)[count] else _different(rng, count)
        if wanted == "on top of" and not _can_carry(things[1], things[0]):
            things = [things[0], _carrier(rng, things[0]), *things[2:]]
        placed = arrange(things, wanted if count == 2 or wanted == "on top of" else None, rng)
        if placed is not None:
            return placed


def check_num_things(num_things: Mapping[int, float]) -> None:
    """UsageError unless these are weights of scenes with one to four things."""
    weights = num_things.values()
    if not set(num_things) <= {1, 2, 3, 4} or not sum(weights) or not all(0 <= w < math.inf for w in weights):
        raise UsageError(f"num_things must weigh 1 to 4 things, positively, got {dict(num_things)}")


def scene_from_seed(seed: int, num_things: Mapping[int, float] = NUM_THINGS) -> Scene:
    """The scene of sample `seed`."""
    return sample_scene(random.Random(seed), num_things)


def compose(kinds: Sequence[Kind], relation: str | None = None, rng: random.Random | None = None) -> Scene:
    """A scene of exactly these things, one to four; `relation` holds between the first and the second.

    Args:
        kinds: what to draw; a (colour, shape) pair is large, matte and plain.
        relation: one of `RELATIONS`, or None for any placement.
        rng: placement, floor, sky and light; the same generator state gives the same scene.

    Raises:
        ValueError: unknown names, too many things, or a wish that cannot be granted, such as standing on a cone.
    """
    rng = rng or random.Random(0)
    if not 1 <= len(kinds) <= 4:
        raise ValueError(f"a scene holds 1 to 4 things, got {len(kinds)}")
    things = [_checked(k if isinstance(k, Thing) else Thing(shape=k[1], colour=k[0])) for k in kinds]
    if relation is not None and (relation not in RELATIONS or len(things) < 2):
        raise ValueError(f"relation {quoted(relation)} needs two things and must be one of {', '.join(RELATIONS)}")
    if relation == "on top of" and not _can_carry(things[1], things[0]):
        raise ValueError(f"a {things[0].size} {things[0].shape} cannot stand on a {things[1].size} {things[1].shape}")
    for _ in range(20):
        placed = arrange(things, relation, rng)
        if placed is not None:
            return placed
    raise ValueError(f"found no clear view of {len(things)} things with relation {quoted(relation)}")


def arrange(things: Sequence[Thing], wanted: str | None, rng: random.Random) -> Scene | None:
    """Places the things so that each is inside the picture and mostly unhidden; None after too many tries."""
    things = [_turned(t, rng) for t in things]
    if wanted == "on top of":
        things[0] = replace(things[0], base_z=round(things[1].height, 4), support=1)
    for _ in range(_TRIES):
        spots = _stacked(things, rng) if wanted == "on top of" else _spread(things, wanted, rng)
        if not _apart(things, spots):
            continue
        placed = tuple(replace(t, x=round(x, 4), y=round(y, 4)) for t, (x, y) in zip(things, spots, strict=True))
        if wanted not in (None, "on top of") and relation(*placed[:2]) != wanted:
            continue
        camera = _fitted(placed, rng)
        if camera is not None:
            return Scene(
                placed, rng.choice(FLOORS), rng.choice(SKIES), _light(rng), camera, round(rng.uniform(-0.05, 0.05), 4)
            )
    return None


def _checked(thing: Thing) -> Thing:
    allowed = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "material": MATERIALS, "pattern": PATTERNS}
    for name, values in allowed.items():
        if getattr(thing, name) not in values:
            raise ValueError(f"unknown {name} {getattr(thing, name)!r}: expected one of {', '.join(values)}")
    return thing


def _kind(rng: random.Random) -> Thing:
    return Thing(
        shape=rng.choice(SHAPES),
        colour=rng.choice(COLOURS),
        size=rng.choices(SIZES, (80, 20))[0],
        material=rng.choices(MATERIALS, (82, 18))[0],
        pattern=rng.choices(PATTERNS, (82, 9, 9))[0],
    )


def _same(rng: random.Random, count: int) -> list[Thing]:
    return [_kind(rng)] * count


def _different(rng: random.Random, count: int) -> list[Thing]:
    things: list[Thing] = []
    while len(things) < count:
        new = _kind(rng)
        if all((new.shape, new.colour) != (t.shape, t.colour) for t in things):
            things.append(new)
    return things


def _can_carry(lower: Thing, upper: Thing) -> bool:
    return lower.shape in FLAT_TOPPED and upper.scale <= lower.scale


def _carrier(rng: random.Random, upper: Thing) -> Thing:
    """Something that `upper` can stand on."""
    while True:
        lower = replace(_kind(rng), shape=rng.choice(FLAT_TOPPED))
        if lower.scale >= upper.scale and (lower.shape, lower.colour) != (upper.shape, upper.colour):
            return lower


def _turned(thing: Thing, rng: random.Random) -> Thing:
    """Turned so that it reads as solid: two sides of a cube show, a ring shows its hole."""
    if thing.shape in ("cube", "pyramid"):
        degrees = rng.uniform(18, 72)
    else:
        degrees = rng.uniform(-38, 38) if thing.shape == "torus" else rng.uniform(0, 360)
    return replace(thing, angle=round(math.radians(degrees), 4))


def _spread(things: Sequence[Thing], wanted: str | None, rng: random.Random) -> list[Spot]:
    """One thing near the middle, two at a chosen angle to each other, more in a loose row from left to right."""
    if len(things) == 1:
        return [(rng.uniform(-0.45, 0.45), rng.uniform(-0.35, 0.35))]
    if len(things) > 2:
        reach = sum(t.reach for t in things) / len(things)
        ways = ((1.4, 0.7, 0.35), (1.5, 0.6, 0.5), (2.1, 0.0, 0.3))  # two zigzags and, for three, a row
        step, depth, play = rng.choice(ways if len(things) == 3 else ways[:2])
        step, turn = 0.1 + step * reach, rng.choice((-depth, depth))
        first = -step * (len(things) - 1) / 2
        row = [(first + k * step + rng.uniform(-0.2, 0.2), turn + rng.uniform(-play, play)) for k in range(len(things))]
        row = [(x, y if k % 2 else y - 2 * turn) for k, (x, y) in enumerate(row)]
        rng.shuffle(row)
        return row
    gap = (things[0].reach + things[1].reach) * rng.uniform(1.02, 1.35) + 0.12
    if wanted in ("left of", "right of"):
        angle = rng.uniform(-30, 30) + (180 if wanted == "left of" else 0)
    elif wanted in ("in front of", "behind"):  # enough to one side that the nearer one does not hide the other
        angle = rng.choice((-1, 1)) * rng.uniform(22, 35) + (270 if wanted == "in front of" else 90)
        gap *= rng.uniform(1.2, 1.5)
    else:
        angle = rng.uniform(0, 360)
    x, y = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
    dx, dy = gap * math.cos(math.radians(angle)) / 2, gap * math.sin(math.radians(angle)) / 2
    return [(x + dx, y + dy), (x - dx, y - dy)]


def _stacked(things: Sequence[Thing], rng: random.Random) -> list[Spot]:
    """The first stands on the second, the rest beside them."""
    lower, *rest = _spread(things[1:], None, rng)
    play = 0.12 * HALF_WIDTH[things[1].shape] * things[1].scale
    return [(lower[0] + rng.uniform(-play, play), lower[1] + rng.uniform(-play, play)), lower, *rest]


def _apart(things: Sequence[Thing], spots: Sequence[Spot]) -> bool:
    """No two things touch, save where one stands on the other."""
    ground = [(t.reach, spot) for t, spot in zip(things, spots, strict=True) if t.support is None]
    return all(
        math.dist(spot, other) > reach + far + 0.05
        for i, (reach, spot) in enumerate(ground)
        for far, other in ground[:i]
    )


def _fitted(things: Sequence[Thing], rng: random.Random) -> Camera | None:
    """The nearest camera that holds everything, or None if things hide each other or it would be too far away."""
    elevation = math.radians(rng.uniform(24, 30))
    pitch = elevation - math.radians(rng.uniform(5.0, 7.5))
    distance = _NEAREST[len(things)] * rng.uniform(0.97, 1.05)
    middle = 0.0 if len(things) == 1 else sum(t.x for t in things) / len(things)
    x = round(middle * 0.8 + rng.uniform(-0.1, 0.1), 4)
    while distance < _FURTHEST:
        camera = Camera(x, round(distance, 4), round(elevation, 4), round(pitch, 4))
        boxes = [box(t, camera) for t in things]
        if any(
            a.overlap(b) > _OVERLAP
            for i, a in enumerate(boxes)
            for j, b in enumerate(boxes[:i])
            if not _stack(things, i, j)
        ):
            return None
        if all(min(b.x0, b.y0) > _MARGIN and max(b.x1, b.y1) < 1 - _MARGIN for b in boxes):
            return camera
        distance *= 1.06
    return None


def _stack(things: Sequence[Thing], i: int, j: int) -> bool:
    return things[i].support == j or things[j].support == i


def _light(rng: random.Random) -> Light:
    side = rng.choice((-1, 1))
    return Light(
        azimuth=round(side * math.radians(rng.uniform(30, 65)), 4),
        elevation=round(math.radians(rng.uniform(44, 56)), 4),
        radius=round(rng.uniform(0.06, 0.12), 4),
    )
