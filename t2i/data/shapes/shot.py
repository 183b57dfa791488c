"""One shot of many views: what every ray hits, what lies in shadow, and which colour comes back.

Legend: V views · M objects of one shape · N hits · H W pixels · h w a tile around an object · K lights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from t2i.data.shapes import solids
from t2i.data.shapes.scene import HALF_WIDTH
from t2i.data.shapes.solids import Vector, vector
from t2i.data.shapes.views import CONTACT, Group, Views

_AMBIENT, _KEY = 0.49, 0.63
_TWILIGHT = 0.2  # cosine below which a surface sees only part of the light
_FAR = 1e4  # depth of the sky
_SKY, _GROUND = -2.0, -1.0  # owners of rays that meet no object


@dataclass(frozen=True)
class Hits:
    """Rays that meet an object of a group before anything else."""

    ray: Tensor  # (N,) int64, in (V, H, W)
    thing: Tensor  # (N,) int64, in the group
    depth: Tensor  # (N,)
    local: Vector  # (N,) each, in the solid's coordinates


class Shot:
    """Depth, owner and light of every ray. Call `hit` for each group, `settle`, `shade` for each, then the colours."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.shape = (views.across.shape[0], views.forward.shape[1], views.across.shape[2])  # (V, H, W)
        down = views.upward < -1e-4
        self.floor_depth = torch.where(down, -views.eye[2] / views.upward, _FAR)  # (V, H, 1)
        self.depth = self.floor_depth.expand(self.shape).flatten()
        self.owner = torch.where(down, _GROUND, _SKY).expand(self.shape).flatten()
        self.blocked = torch.zeros_like(self.depth)  # share of the light
        self.contact = torch.zeros_like(self.depth)  # shade where things meet the floor
        self.hits: list[Hits] = []

    def hit(self, group: Group) -> None:
        """Finds the rays that meet this group's objects; an earlier or later group may still win them."""
        ray, direction, eye = self._tile(group, group.cover)
        cos, sin, scale = group.turn
        o = _turned(eye, cos, sin, 1 / scale, minus=group.at)
        d = _turned(direction, cos, sin, 1 / scale)
        t = solids.entry(group.shape, o, d)  # (M, h, w)
        thing, spot = (t.flatten(1) < torch.inf).nonzero(as_tuple=True)  # (N,)
        flat = thing * t[0].numel() + spot
        t, ray = t.flatten()[flat], ray.flatten()[flat]
        along = [v.expand(-1, *d[0].shape[1:]).flatten()[flat] for v in d]
        local = (
            _pick(o[0], thing) + t * along[0],
            _pick(o[1], thing) + t * along[1],
            _pick(o[2], thing) + t * along[2],
        )
        self.depth.scatter_reduce_(0, ray, t, "amin")
        self.hits.append(Hits(ray, thing, t, local))

    def settle(self, groups: list[Group]) -> None:
        """Keeps only the first hit of every ray."""
        for i, (group, hits) in enumerate(zip(groups, self.hits, strict=True)):
            first = self.depth[hits.ray] == hits.depth
            kept = [v[first] for v in (hits.ray, hits.thing, hits.depth, *hits.local)]
            self.hits[i] = Hits(kept[0], kept[1], kept[2], (kept[3], kept[4], kept[5]))
            self.owner[kept[0]] = _pick(group.slot, kept[1])

    def shade(self, group: Group) -> None:
        """Adds the shadows that this group's objects cast on everything else, and the shade at their feet."""
        ray, direction, eye = self._tile(group, group.shade)
        depth, owner = self.depth[ray], self.owner[ray]  # (M, h, w)
        x, y, z = (a + depth * b for a, b in zip(eye, direction, strict=True))
        light = [v[group.view] for v in self.views.light]
        dx, dy, dz = group.at[0] - x, group.at[1] - y, group.middle - z
        along = dx * light[0] + dy * light[1] + dz * light[2]
        flat2 = dx * dx + dy * dy
        near = group.reach + along.clamp_min(0) * group.spread * 1.05
        close = (flat2 + dz * dz - along * along < near * near) & (along > -group.reach)
        close &= (owner != group.slot) & (owner != _SKY)
        thing, spot = close.flatten(1).nonzero(as_tuple=True)  # (N,)
        flat = thing * close[0].numel() + spot
        cos, sin, scale = (_pick(v, thing) for v in group.turn)
        at = (_pick(group.at[0], thing), _pick(group.at[1], thing), _pick(group.at[2], thing))
        point = _turned((x.flatten()[flat], y.flatten()[flat], z.flatten()[flat]), cos, sin, 1 / scale, minus=at)
        towards = vector(group.lights[:, :, thing])  # (K, N) each
        hidden = solids.cover(group.shape, point, towards)
        total = hidden[0]
        for k in range(1, len(hidden)):
            total = total + hidden[k]
        self.blocked.index_add_(0, ray.flatten()[flat], total / len(hidden))
        wide = HALF_WIDTH[group.shape] * group.turn[2] * CONTACT
        shade = (1 - flat2 / (wide * wide)).clamp_min(0) * (owner == _GROUND) * (group.at[2] == 0)
        self.contact.scatter_reduce_(0, ray.flatten(), (0.6 * shade * shade).flatten(), "amax")

    def surroundings(self) -> Tensor:
        """Floor and sky, (3, V * H * W) linear."""
        views = self.views
        lit = (1 - self.blocked).clamp_min(0).view(self.shape)
        shine = _AMBIENT * (1 - self.contact.view(self.shape)) + _KEY * views.light[2] * lit
        patterned = (views.floor[6] + views.floor[7] + views.floor[8]).flatten().nonzero()[:, 0]
        shine[patterned] *= self._floor_pattern(patterned)
        haze = ((self.floor_depth - 5) / 22).clamp(0, 1)  # (V, H, 1)
        high = (views.upward * 2.2).clamp(0, 1)
        image = torch.empty(3, *self.shape, device=lit.device)
        for c in range(3):
            sky = views.sky[c] * (1 - high) + views.sky[3 + c] * high
            torch.mul(shine, views.floor[c] * (1 - haze), out=image[c])
            image[c] += sky * haze
        return image.view(3, -1)

    def _floor_pattern(self, at: Tensor) -> Tensor:
        """Brightness of the floors of these views, (len(at), H, W)."""
        width, depth, shift, checks, grain, joint, line = (v[at] for v in self.views.floor[3:])
        away = self.floor_depth[at]
        x = (self.views.eye[0][at] + away * self.views.across[at]) / width
        column = x.floor()
        noise = column * 0.618034
        noise = noise - noise.floor()
        y = (self.views.eye[1][at] + away * self.views.forward[at]) / depth + noise * shift
        row = y.floor()
        tone = noise + row * 0.381966
        parity = (column + row) * 0.5
        gap = ((x - column) * width < line) | ((y - row) * depth < line)
        return 1 - checks * 2 * (parity - parity.floor()) - grain * (tone - tone.floor()) - joint * gap

    def paint(self, group: Group, hits: Hits, image: Tensor) -> None:
        """Writes the colours of this group's hits into the image."""
        looks = group.looks.index_select(1, hits.thing)  # (9, N)
        striped, checkered = solids.paint(group.shape, hits.local)
        second = (striped & (looks[6] == 1)) | (checkered & (looks[6] == 2))
        base = torch.where(second, looks[3:6], looks[:3])  # (3, N)
        cos, sin = (_pick(v, hits.thing) for v in group.turn[:2])
        view = group.view[hits.thing]
        light = [_pick(v, view) for v in self.views.light]
        nx, ny, nz = _turned(solids.normal(group.shape, hits.local), cos, -sin, torch.ones_like(cos))
        facing = nx * light[0] + ny * light[1] + nz * light[2]
        lit = (1 - self.blocked[hits.ray]).clamp_min(0)
        wide = (facing.clamp(-_TWILIGHT, _TWILIGHT) + _TWILIGHT) ** 2 / (4 * _TWILIGHT)  # the light has a size
        lambert = torch.where(facing < _TWILIGHT, wide, facing)
        colour = base * (_AMBIENT * (0.85 + 0.3 * nz) + _KEY * lambert * lit)
        shiny = (looks[7] > 0).nonzero()[:, 0]
        if len(shiny):
            normal = (nx[shiny], ny[shiny], nz[shiny])
            colour[:, shiny] = self._polished(hits, group, shiny, normal, facing[shiny], colour[:, shiny])
        image[:, hits.ray] = colour

    def _polished(self, hits: Hits, group: Group, at: Tensor, normal: Vector, facing: Tensor, colour: Tensor) -> Tensor:
        """Adds the mirrored sky and floor (Schlick 1994) and a highlight (Phong 1975) to shiny hits."""
        views, thing = self.views, hits.thing[at]
        view, ray = group.view[thing], hits.ray[at]
        column, row = ray % self.shape[2], ray.div(self.shape[2], rounding_mode="floor")
        d = (
            views.across[view, 0, column],
            views.forward.flatten()[row],
            views.upward.flatten()[row],
        )
        size = 1 / (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt()
        d = (d[0] * size, d[1] * size, d[2] * size)
        towards = -(d[0] * normal[0] + d[1] * normal[1] + d[2] * normal[2]).clamp_max(0)
        mirrored = [a + 2 * towards * n for a, n in zip(d, normal, strict=True)]
        x, y, z = (_pick(v, view) * m for v, m in zip(views.light, mirrored, strict=True))
        glint = x + y + z
        sheen = glint.clamp_min(0)
        sheen = 0.16 * sheen * sheen * (facing > 0)  # the light's wide surroundings, which flat sides show
        glint = ((glint - 0.90) * 14).clamp(0, 1) * (facing > 0) * (1 - self.blocked[ray]).clamp_min(0)
        graze = 1 - towards
        graze2 = graze * graze
        mirror = 0.07 + 0.5 * graze2 * graze2 * graze
        high = (mirrored[2] * 1.6).clamp(0, 1)
        below = (0.5 + 4 * mirrored[2]).clamp(0, 1)
        out = []
        for c in range(3):
            sky = _pick(views.sky[c], view) * (1 - high) + _pick(views.sky[3 + c], view) * high
            seen = sky * below + _pick(views.floor[c], view) * 0.7 * (1 - below)
            out.append(colour[c] * (1 - mirror) + seen * mirror + sheen + 0.85 * glint * glint)
        return torch.stack(out)

    def _tile(self, group: Group, area: Tensor) -> tuple[Tensor, Vector, Vector]:
        """Rays of a tile around every object, all of one size: index (M, h, w), direction and eye."""
        _, height, width = self.shape
        x0, y0, x1, y1 = area.unbind(1)
        w, h = max(int((x1 - x0).max()), 1), max(int((y1 - y0).max()), 1)
        column = x0.clamp_max(width - w)[:, None] + torch.arange(w, device=area.device)  # (M, w)
        row = y0.clamp_max(height - h)[:, None] + torch.arange(h, device=area.device)  # (M, h)
        row = row + group.view[:, None] * height
        across = self.views.across[group.view[:, None], 0, column][:, None]
        forward, upward = (v.flatten()[row][:, :, None] for v in (self.views.forward, self.views.upward))
        eye = (self.views.eye[0][group.view], self.views.eye[1][group.view], self.views.eye[2][group.view])
        return row[:, :, None] * width + column[:, None], (across, forward, upward), eye


def _pick(column: Tensor, index: Tensor) -> Tensor:
    return column.flatten()[index]


def _turned(v: Vector, cos: Tensor, sin: Tensor, scale: Tensor, minus: Vector | None = None) -> Vector:
    """(v - minus), turned by the angle backwards about the vertical and scaled."""
    x, y, z = v if minus is None else (v[0] - minus[0], v[1] - minus[1], v[2] - minus[2])
    return (x * cos + y * sin) * scale, (y * cos - x * sin) * scale, z * scale
