"""The six solids in their own coordinates: where rays enter, which way surfaces face, what is painted on them.

Every solid stands on z = 0 around the z axis, at scale 1; a torus stands upright with its hole along y. Points and
directions are triples of tensors that broadcast. Only operations that IEEE 754 rounds exactly are used (+ - * / sqrt,
comparisons), so a picture has the same bytes alone and in a batch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from t2i.data.shapes.scene import HALF_WIDTH, HEIGHT, TUBE

Vector = tuple[Tensor, Tensor, Tensor]


def vector(parts: Iterable[Tensor]) -> Vector:
    """Three tensors as a `Vector`."""
    x, y, z = parts
    return x, y, z


_RADIUS = HALF_WIDTH["torus"] - TUBE  # of the circle in the middle of the tube
_STEPS = (5, 5, 14)  # of sphere tracing; after each number the rays that have arrived or left drop out
_TOUCH = 1.5e-3  # a ray this close to the torus hits it
_SOFT = 8.0  # one over the squared length inside a solid that stops all light
_SOFT_GAP = 20.0  # the same for the depth inside a torus


def crossing(shape: str, o: Vector, d: Vector) -> tuple[Tensor, Tensor]:
    """Ray o + t d → the t at which it enters and leaves; it misses where enter >= leave. For a torus, of its disc hull.

    Rays must be less steep than a cone's side (tan < 2.1), as all rays from camera and light are.
    """
    half, height = HALF_WIDTH[shape], HEIGHT[shape]
    x, y, z = o
    if shape == "sphere":
        return _round(x * x + y * y + (z - half) * (z - half) - half * half,
                      x * d[0] + y * d[1] + (z - half) * d[2],
                      d[0] * d[0] + d[1] * d[1] + d[2] * d[2])  # fmt: skip
    if shape == "torus":
        z = z - half
        disc = _round(x * x + z * z - half * half, x * d[0] + z * d[2], d[0] * d[0] + d[2] * d[2])
        return _both(disc, _slab(y, d[1], TUBE))
    body = _slab(z - height / 2, d[2], height / 2)
    if shape == "cube":
        return _both(_both(body, _slab(x, d[0], half)), _slab(y, d[1], half))
    if shape == "cylinder":
        return _both(body, _round(x * x + y * y - half * half, x * d[0] + y * d[1], d[0] * d[0] + d[1] * d[1]))
    slope = half / height
    up, up_d = slope * (height - z), -slope * d[2]  # the half width at the height of the ray
    if shape == "cone":
        return _both(body, _round(x * x + y * y - up * up,
                                  x * d[0] + y * d[1] - up * up_d,
                                  d[0] * d[0] + d[1] * d[1] - up_d * up_d))  # fmt: skip
    for axis, axis_d in ((x, d[0]), (-x, -d[0]), (y, d[1]), (-y, -d[1])):
        body = _both(body, _half_space(axis - up, axis_d - up_d))
    return body


def entry(shape: str, o: Vector, d: Vector) -> Tensor:
    """Ray o + t d → the t of the first hit, infinity where it misses. o lies outside the solid."""
    near, far = crossing(shape, o, d)
    hit = (near < far) & (far > 1e-4)
    t = torch.where(hit, near, torch.inf)
    return _torus_entry(t, far, o, d) if shape == "torus" else t


def cover(shape: str, o: Vector, d: Vector) -> Tensor:
    """How much of the thin cone around the ray o + t d, t > 0, the solid hides, in [0, 1]. o lies outside the solid.

    The measure is the squared length of the ray inside the solid, so that few rays cast a shadow without steps.
    """
    near, far = crossing(shape, o, d)
    if shape == "torus":
        return _torus_cover(near, far, o, d)
    inside = far - near.clamp_min(0)
    inside = inside.clamp_min(0)
    return (inside * inside * _SOFT).clamp_max(1)


def normal(shape: str, p: Vector) -> Vector:
    """Outward unit normal at a point of the surface."""
    x, y, z = p
    half, height = HALF_WIDTH[shape], HEIGHT[shape]
    if shape == "sphere":
        return x / half, y / half, (z - half) / half
    if shape == "cylinder":
        top = (z > height - 1e-3).to(x.dtype)
        return x / half * (1 - top), y / half * (1 - top), top
    if shape == "torus":
        ring = (x * x + (z - half) * (z - half)).sqrt()
        out = (ring - _RADIUS) / (ring * TUBE)
        return _unit((x * out, y / TUBE, (z - half) * out))
    if shape == "cone":
        slope = half / height
        return _unit((x, y, slope * slope * (height - z)))
    if shape == "cube":
        a, b, c = x.abs(), y.abs(), (z - half).abs()
        first, second = (a >= b) & (a >= c), b >= c
        zero = torch.zeros_like(x)
        return (torch.where(first, x.sign(), zero),
                torch.where(~first & second, y.sign(), zero),
                torch.where(~first & ~second, (z - half).sign(), zero))  # fmt: skip
    side = (x.abs() >= y.abs()).to(x.dtype)
    slope = half / height
    return _unit((x.sign() * side, y.sign() * (1 - side), torch.full_like(x, slope)))


def paint(shape: str, p: Vector) -> tuple[Tensor, Tensor]:
    """Where the second colour of a striped and of a checkered solid goes: two masks."""
    half, height = HALF_WIDTH[shape], HEIGHT[shape]
    x, y, z = p[0], p[1], p[2] * 0.999 + 0.0005 * height  # never quite on the rim of a cell
    if shape == "torus":
        z = z - half
        return _sectors(x, z, 3), _sectors(x, z, 4) ^ (x * x + z * z > _RADIUS * _RADIUS)
    rows = z / height
    stripes = _odd(rows * (7 if shape == "sphere" else 5))
    if shape == "cube":
        a, b, c = x / half * 0.999, y / half * 0.999, rows * 2 - 1
        on_top = _odd((a + 1) * 2.5) & (p[2] > height - 1e-3)
        return stripes ^ on_top, _odd((a + 1) * 1.5) ^ _odd((b + 1) * 1.5) ^ _odd((c + 1) * 1.5)
    if shape == "pyramid":
        across = torch.where(x.abs() >= y.abs(), y, x) / ((height - z) * (half / height))
        return stripes, _odd(rows * 4) ^ _odd((across + 1) * 2)
    return stripes, _odd(rows * 4) ^ _sectors(x, y, 4)


def _round(c: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Where a t^2 + 2 b t + c < 0, for a > 0."""
    under = b * b - a * c
    root = under.clamp_min(0).sqrt()
    return torch.where(under > 0, (-b - root) / a, torch.inf), (root - b) / a


def _slab(o: Tensor, d: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Where |o + t d| < half."""
    inverse = 1 / (d + 1e-9)
    middle, reach = -o * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _half_space(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where o + t d < 0."""
    t = -o / d
    return torch.where(d < 0, t, -torch.inf), torch.where(d > 0, t, torch.inf)


def _both(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _unit(v: Vector) -> Vector:
    scale = 1 / (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt()
    return v[0] * scale, v[1] * scale, v[2] * scale


def _odd(v: Tensor) -> Tensor:
    """True in every second unit interval."""
    half = v * 0.5
    return half - half.floor() >= 0.5


def _sectors(x: Tensor, y: Tensor, n: int) -> Tensor:
    """True in every second of 2 n equal sectors around the origin: the sign of Im (x + i y)^n."""
    real, imag = x, y
    for _ in range(n - 1):
        real, imag = real * x - imag * y, real * y + imag * x
    return imag > 0


def _torus_gap(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Distance to a torus around the origin, negative inside."""
    ring = (x * x + z * z).sqrt() - _RADIUS
    return (ring * ring + y * y).sqrt() - TUBE


def _torus_entry(near: Tensor, far: Tensor, o: Vector, d: Vector) -> Tensor:
    """Sphere tracing from `near` (Hart 1996) on the rays that cross the hull; safe, as the distance is exact."""
    t = near.flatten()
    todo = (t < torch.inf).nonzero()[:, 0]
    x, y, z, dx, dy, dz, end = (v.expand(near.shape).flatten()[todo] for v in (*o, *d, far))
    z = z - HALF_WIDTH["torus"]
    step = 1 / (dx * dx + dy * dy + dz * dz).sqrt()
    now = t[todo].clamp_min(0)
    t[todo] = torch.inf
    for num_steps in _STEPS:
        for _ in range(num_steps):
            gap = _torus_gap(x + now * dx, y + now * dy, z + now * dz)
            now = now + gap * step
        done = gap < _TOUCH
        t[todo[done]] = now[done]
        left = (~done & (now < end)).nonzero()[:, 0]
        todo, x, y, z, dx, dy, dz, end, step, now = (v[left] for v in (todo, x, y, z, dx, dy, dz, end, step, now))
    return t.view(near.shape)


def _torus_cover(near: Tensor, far: Tensor, o: Vector, d: Vector) -> Tensor:
    """Cover from the smallest distance along the ray: the best of five points, then halving the step around it."""
    length = (far - near).clamp_min(0) * (near < torch.inf)
    x, y, z = (a + torch.where(near < torch.inf, near, 0) * b for a, b in zip(o, d, strict=True))
    z = z - HALF_WIDTH["torus"]
    dx, dy, dz = d[0] * length, d[1] * length, d[2] * length

    def gap(at: Tensor | float) -> Tensor:
        return _torus_gap(x + at * dx, y + at * dy, z + at * dz)

    at = torch.full_like(x, 0.1)
    best = gap(at)
    for trial in (0.3, 0.5, 0.7, 0.9):
        found = gap(trial)
        at = torch.where(found < best, trial, at)
        best = torch.minimum(best, found)
    for step in (0.1, 0.05):
        for beside in (at - step, at + step):
            found = gap(beside)
            at = torch.where(found < best, beside, at)
            best = torch.minimum(best, found)
    return (0.5 - best * _SOFT_GAP).clamp(0, 1) * (length > 0)
