"""Scenes as tensors: the rays of every view, and the objects in them grouped by shape.

Legend: V views, one per scene and sample position · M objects · H W pixels · K lights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from t2i.data.shapes.palette import FLOOR_STYLES, PAINTS, SECOND_PAINTS, SKY_STYLES
from t2i.data.shapes.scene import FOCAL, HALF_WIDTH, PATTERNS, SHAPES, Light, Scene, Thing, box, outline
from t2i.data.shapes.solids import Vector, vector

Window = tuple[float, float, float, float]
Rectangle = tuple[int, int, int, int]

STRIDE = {1: 1, 2: 2, 4: 3, 16: 5}  # of the lattice of sample positions, in which no two share a row or a column
CONTACT = 1.4  # the shade at a thing's foot ends at this many half widths
_LIGHTS = 16


@dataclass(frozen=True)
class Views:
    """Rays and surroundings; columns broadcast over H and W. A ray's component along the line of sight is 1."""

    across: Tensor  # (V, 1, W) x of the directions: no camera rolls or turns
    forward: Tensor  # (V, H, 1) y of the directions
    upward: Tensor  # (V, H, 1) z of the directions
    eye: Vector  # (V, 1, 1) each
    light: Vector  # (V, 1, 1) each, unit direction to the middle of the light
    floor: tuple[Tensor, ...]  # (V, 1, 1) each: linear colour, then the numbers of `palette.Floor`
    sky: tuple[Tensor, ...]  # (V, 1, 1) each: linear colour at the horizon, then above


class _Member(NamedTuple):
    scene_index: int
    slot: int
    scene: Scene
    thing: Thing
    cover: Rectangle
    shade: Rectangle


@dataclass(frozen=True)
class Group:
    """The M objects of one shape. `at` is their foot, `turn` cosine, sine and scale; columns are (M, 1, 1)."""

    shape: str
    view: Tensor  # (M,) int64
    slot: Tensor  # (M, 1, 1) number of the object in its scene
    at: Vector
    turn: Vector
    middle: Tensor  # (M, 1, 1) height of the centre over the floor
    reach: Tensor  # (M, 1, 1) radius of the ball around it
    spread: Tensor  # (M, 1, 1) angular radius of the light
    lights: Tensor  # (3, K, M) directions to this view's share of the light, in local coordinates
    looks: Tensor  # (9, M) two linear colours, pattern (0 plain, 1 striped, 2 checkered), shiny, slot
    cover: Tensor  # (M, 4) int64: pixels x0, y0, x1, y1 that it can cover
    shade: Tensor  # (M, 4) int64: pixels that its shadow can cover


def make_views(
    scenes: Sequence[Scene],
    windows: Sequence[Window],
    size: tuple[int, int],
    band: range,
    samples: int,
    device: torch.device,
) -> Views:
    """The rays of some rows of the windows; view b * samples + s is sample s of scene b."""
    spots = sample_positions(samples)
    frame = torch.tensor(list(windows), dtype=torch.float64)[:, None, :, None]  # (B, 1, 4, 1)
    spot = torch.tensor(spots, dtype=torch.float64)  # (S, 2)
    columns = (torch.arange(size[1]) + spot[:, :1]) / size[1]  # (S, W)
    rows = (torch.arange(band.start, band.stop) + spot[:, 1:]) / size[0]  # (S, H)
    u = frame[:, :, 0] + columns * (frame[:, :, 2] - frame[:, :, 0])  # (B, S, W)
    v = frame[:, :, 1] + rows * (frame[:, :, 3] - frame[:, :, 1])  # (B, S, H)
    across = ((u - 0.5) / FOCAL).flatten(0, 1)[:, None].float()
    up = ((0.5 - v) / FOCAL).flatten(0, 1)[:, :, None].float()
    table = [_surroundings(s) for s in scenes]
    columns_of = torch.tensor(table).repeat_interleave(samples, 0).to(device).T[:, :, None, None].contiguous().unbind()
    cos, sin = columns_of[0], columns_of[1]
    up = up.to(device)
    return Views(
        across=across.to(device),
        forward=cos + up * sin,
        upward=up * cos - sin,
        eye=vector(columns_of[2:5]),
        light=vector(columns_of[5:8]),
        floor=columns_of[8:18],
        sky=columns_of[18:24],
    )


def make_groups(
    scenes: Sequence[Scene],
    windows: Sequence[Window],
    size: tuple[int, int],
    band: range,
    samples: int,
    device: torch.device,
) -> list[Group]:
    """The objects that touch these pixels, by shape, each once per sample position."""
    members: dict[str, list[_Member]] = {shape: [] for shape in SHAPES}
    for b, (scene, window) in enumerate(zip(scenes, windows, strict=True)):
        for slot, thing in enumerate(scene.things):
            cover = _pixels(box(thing, scene.camera), window, size, band)
            shade = _pixels(_shade_box(thing, scene), window, size, band)
            if _touches(cover) or _touches(shade):
                members[thing.shape].append(_Member(b, slot, scene, thing, cover, shade))
    return [_group(shape, found, samples, device) for shape, found in members.items() if found]


def sample_positions(samples: int) -> list[tuple[float, float]]:
    """(x, y) in (0, 1) of every ray in its pixel."""
    stride = STRIDE[samples]
    return [((i + 0.5) / samples, ((stride * (i + 1)) % (samples + 1) - 0.5) / samples) for i in range(samples)]


def _linear(colour: Sequence[float]) -> list[float]:
    return [c * c for c in colour]


def _direction(light: Light) -> tuple[float, float, float]:
    flat = math.cos(light.elevation)
    return flat * math.sin(light.azimuth), -flat * math.cos(light.azimuth), math.sin(light.elevation)


def _surroundings(scene: Scene) -> list[float]:
    floor, (horizon, above) = FLOOR_STYLES[scene.floor], SKY_STYLES[scene.sky]
    colour = [c + scene.tint for c in floor.colour]
    return [
        math.cos(scene.camera.pitch),
        math.sin(scene.camera.pitch),
        *scene.camera.eye,
        *_direction(scene.light),
        *_linear(colour),
        *floor[1:],
        *_linear(horizon),
        *_linear(above),
    ]


def _shade_box(thing: Thing, scene: Scene) -> tuple[float, float, float, float]:
    """Box of the picture around the thing, its shadow, the shade at its foot, and all that lies between."""
    x, y, z = _direction(scene.light)
    foot = CONTACT * HALF_WIDTH[thing.shape] * thing.scale
    soft = 1.2 * scene.light.radius / z  # reach of the penumbra per height
    points = outline(thing)
    xs = [px - x / z * pz + s * soft * pz for px, _, pz in points for s in (-1, 1)] + [thing.x - foot, thing.x + foot]
    ys = [py - y / z * pz + s * soft / z * pz for _, py, pz in points for s in (-1, 1)] + [
        thing.y - foot,
        thing.y + foot,
    ]
    corners = [scene.camera.project(a, b, 0.0) for a in (min(xs), max(xs)) for b in (min(ys), max(ys))]
    us, vs = [c[0] for c in corners], [c[1] for c in corners]
    own = box(thing, scene.camera)
    return min(own.x0, *us), min(own.y0, *vs), max(own.x1, *us), max(own.y1, *vs)


def _pixels(area: Sequence[float], window: Window, size: tuple[int, int], band: range) -> Rectangle:
    """A box of the picture → the pixels of the band that it touches, one to spare on every side."""
    per_u, per_v = size[1] / (window[2] - window[0]), size[0] / (window[3] - window[1])
    x0, x1 = (area[0] - window[0]) * per_u, (area[2] - window[0]) * per_u
    y0, y1 = (area[1] - window[1]) * per_v - band.start, (area[3] - window[1]) * per_v - band.start

    def inside(value: float, limit: int) -> int:
        return int(min(max(value, 0), limit))

    return inside(x0 - 1, size[1]), inside(y0 - 1, len(band)), inside(x1 + 2, size[1]), inside(y1 + 2, len(band))


def _touches(area: Rectangle) -> bool:
    return area[0] < area[2] and area[1] < area[3]


def _group(shape: str, members: Sequence[_Member], samples: int, device: torch.device) -> Group:
    columns, looks, suns = [], [], []
    for m in members:
        t, light = m.thing, m.scene.light
        cos, sin = math.cos(t.angle), math.sin(t.angle)
        ball = t.height / 2 if shape in ("sphere", "torus") else math.hypot(t.reach, t.height / 2)
        columns.append((m.slot, t.x, t.y, t.base_z, cos, sin, t.scale, t.base_z + t.height / 2, ball, light.radius))
        paints = (*_linear(PAINTS[t.colour]), *_linear(SECOND_PAINTS[t.colour]))
        looks.append((*paints, PATTERNS.index(t.pattern), t.material == "shiny", m.slot))
        x, y, z = _direction(light)
        suns.append((cos * x + sin * y, cos * y - sin * x, z, light.radius))

    def spread(values: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(samples, 0).to(device)

    column = spread(columns).T[:, :, None, None].contiguous().unbind()
    view = torch.tensor([m.scene_index for m in members])[:, None] * samples + torch.arange(samples)
    return Group(
        shape=shape,
        view=view.flatten().to(device),
        slot=column[0],
        at=vector(column[1:4]),
        turn=vector(column[4:7]),
        middle=column[7],
        reach=column[8],
        spread=column[9],
        lights=_lights(torch.tensor(suns), samples).to(device),
        looks=spread(looks).T.contiguous(),
        cover=spread([m.cover for m in members], torch.int64),
        shade=spread([m.shade for m in members], torch.int64),
    )


def _lights(suns: Tensor, samples: int) -> Tensor:
    """Middles and radii of lights (M, 4) → directions to points spread evenly over each, (3, K, M * S).

    Point k of sample s is number k * S + s of Vogel's spiral (1979).
    """
    spiral = [(math.sqrt((i + 0.5) / _LIGHTS), i * math.pi * (3 - math.sqrt(5))) for i in range(_LIGHTS)]
    x, y, z, radius = suns[:, :, None].unbind(1)  # (M, 1)
    a = radius * torch.tensor([r * math.cos(phi) for r, phi in spiral])  # (M, 16)
    b = radius * torch.tensor([r * math.sin(phi) for r, phi in spiral])
    flat = (x * x + y * y).sqrt()
    directions = torch.stack(
        (x - a * y / flat - b * x * z / flat, y + a * x / flat - b * y * z / flat, z + b * flat), 1
    )
    return rearrange(directions, "m xyz (k s) -> xyz k (m s)", s=samples).contiguous()
