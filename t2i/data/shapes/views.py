"""Scenes as tensors: the rays of every view, and the objects in them grouped by shape.

Legend: V views, one per scene and sample position · M objects · H W pixels · K lights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from t2i.data.shapes.palette import FLOOR_STYLES, PAINTS, SECOND_PAINTS, SKY_STYLES
from t2i.data.shapes.scene import FOCAL, HALF_WIDTH, PATTERNS, SHAPES, Light, Scene, Thing, box
from t2i.data.shapes.solids import Vector

Window = tuple[float, float, float, float]
Rectangle = tuple[int, int, int, int]

STRIDE = {1: 1, 2: 2, 4: 3, 16: 5}  # of the lattice of sample positions, in which no two share a row or a column
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
    lights: Tensor  # (M, 3, K) directions to this view's share of the light, in local coordinates
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
    frame = torch.tensor([w for w in windows], dtype=torch.float64)[:, None, :, None]  # (B, 1, 4, 1)
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
        eye=columns_of[2:5],
        light=columns_of[5:8],
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


def _disc(light: Light) -> list[tuple[float, float, float]]:
    """Directions to points spread evenly over the light (Vogel's spiral)."""
    x, y, z = _direction(light)
    flat = math.hypot(x, y)
    side, rise = (-y / flat, x / flat, 0.0), (-x * z / flat, -y * z / flat, flat)
    points = []
    for i in range(_LIGHTS):
        r, phi = light.radius * math.sqrt((i + 0.5) / _LIGHTS), i * math.pi * (3 - math.sqrt(5))
        a, b = r * math.cos(phi), r * math.sin(phi)
        points.append((x + a * side[0] + b * rise[0], y + a * side[1] + b * rise[1], z + b * rise[2]))
    return points


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
    """Box of the picture around the thing's shadow on the floor, the contact shade, and whatever lies between."""
    x, y, z = _direction(scene.light)
    ball = max(HALF_WIDTH[thing.shape] * thing.scale * 1.25, thing.reach)
    points = []
    for height in (thing.base_z, thing.base_z + thing.height):
        points += [(thing.x, thing.y, height, ball)]
        soft = ball * 1.12 + scene.light.radius * height / z * 1.5
        points += [(thing.x - x / z * height, thing.y - y / z * height, 0.0, soft)]
    corners = [
        scene.camera.project(px + a * r, py + b * r, pz)[:2] for px, py, pz, r in points for a in (-1, 1) for b in (-1, 1)
    ]
    us, vs = [c[0] for c in corners], [c[1] for c in corners]
    return min(us), min(vs), max(us), max(vs)


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
    columns, looks, lights = [], [], []
    for m in members:
        t, light = m.thing, m.scene.light
        cos, sin = math.cos(t.angle), math.sin(t.angle)
        ball = t.height / 2 if shape in ("sphere", "torus") else math.hypot(t.reach, t.height / 2)
        columns.append((m.slot, t.x, t.y, t.base_z, cos, sin, t.scale, t.base_z + t.height / 2, ball, light.radius))
        paints = (*_linear(PAINTS[t.colour]), *_linear(SECOND_PAINTS[t.colour]))
        looks.append((*paints, PATTERNS.index(t.pattern), t.material == "shiny", m.slot))
        lights.append([(cos * x + sin * y, cos * y - sin * x, z) for x, y, z in _disc(light)])

    def spread(values: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(samples, 0).to(device)

    column = spread(columns).T[:, :, None, None].contiguous().unbind()
    share = torch.tensor(lights).unflatten(1, (_LIGHTS // samples, samples))  # light k of sample s is number k * S + s
    view = torch.tensor([m.scene_index for m in members])[:, None] * samples + torch.arange(samples)
    return Group(
        shape=shape,
        view=view.flatten().to(device),
        slot=column[0],
        at=column[1:4],
        turn=column[4:7],
        middle=column[7],
        reach=column[8],
        spread=column[9],
        lights=share.permute(0, 2, 3, 1).flatten(0, 1).contiguous().to(device),
        looks=spread(looks).T.contiguous(),
        cover=spread([m.cover for m in members], torch.int64),
        shade=spread([m.shade for m in members], torch.int64),
    )
