"""What a picture of the shapes world contains, exactly: things on a floor, a light and a camera.

World coordinates: x to the right, y away from the camera (depth), z up, floor at z = 0. A large sphere is 1.44 wide.
Picture coordinates: u to the right and v down, both in [0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

SHAPES = ("cube", "sphere", "cylinder", "cone", "pyramid", "torus")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""What a scene of one thing may be labelled."""
SIZES = ("large", "small")
MATERIALS = ("matte", "shiny")
PATTERNS = ("plain", "striped", "checkered")
RELATIONS = ("left of", "right of", "in front of", "behind", "on top of")
FLOORS = ("grey", "beige", "sage", "slate", "tiles", "checker", "wood", "planks")
SKIES = ("day", "dawn", "dusk", "mist", "mint")

FLAT_TOPPED = ("cube", "cylinder")
SCALE = {"large": 1.0, "small": 0.62}
FOCAL = 1.1  # of every camera, in picture widths

# Half width and height of every shape at scale 1. A torus stands upright: `TUBE` is the radius of its tube.
HALF_WIDTH = {"cube": 0.56, "sphere": 0.72, "cylinder": 0.56, "cone": 0.68, "pyramid": 0.66, "torus": 0.78}
HEIGHT = {"cube": 1.12, "sphere": 1.44, "cylinder": 1.25, "cone": 1.45, "pyramid": 1.3, "torus": 1.56}
TUBE = 0.21
_SQUARE = ("cube", "pyramid")  # their corners reach further than their sides
_ANGLES = tuple((k + 0.5) * math.pi / 8 for k in range(16))
_RING = tuple((math.cos(a) / math.cos(math.pi / 16), math.sin(a) / math.cos(math.pi / 16)) for a in _ANGLES)


@dataclass(frozen=True)
class Thing:
    """One object. `angle` turns it about the vertical (radians); `support` is the index of what it stands on."""

    shape: str
    colour: str
    size: str = "large"
    material: str = "matte"
    pattern: str = "plain"
    x: float = 0.0
    y: float = 0.0
    base_z: float = 0.0
    angle: float = 0.0
    support: int | None = None

    @property
    def scale(self) -> float:
        return SCALE[self.size]

    @property
    def height(self) -> float:
        return HEIGHT[self.shape] * self.scale

    @property
    def reach(self) -> float:
        """Radius of the upright cylinder around it."""
        return HALF_WIDTH[self.shape] * self.scale * (math.sqrt(2) if self.shape in _SQUARE else 1.0)


@dataclass(frozen=True)
class Camera:
    """Stands `distance` from the target (x, 0, 0.5), `elevation` above it, looking down by `pitch` (radians)."""

    x: float = 0.0
    distance: float = 4.0
    elevation: float = 0.45
    pitch: float = 0.35

    @cached_property
    def eye(self) -> tuple[float, float, float]:
        flat, rise = self.distance * math.cos(self.elevation), self.distance * math.sin(self.elevation)
        return self.x, -flat, 0.5 + rise

    @cached_property
    def tilt(self) -> tuple[float, float]:
        """Cosine and sine of the pitch."""
        return math.cos(self.pitch), math.sin(self.pitch)

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """A point of the world → (u, v, depth along the line of sight)."""
        eye_x, eye_y, eye_z = self.eye
        c, s = self.tilt
        depth = (y - eye_y) * c - (z - eye_z) * s
        up = (y - eye_y) * s + (z - eye_z) * c
        return 0.5 + FOCAL * (x - eye_x) / depth, 0.5 - FOCAL * up / depth, depth


@dataclass(frozen=True)
class Light:
    """A far disc. `azimuth` 0 is straight behind the camera and grows to its right; all three are in radians."""

    azimuth: float = -0.7
    elevation: float = 0.85
    radius: float = 0.08


@dataclass(frozen=True)
class Scene:
    """Everything in one picture."""

    things: tuple[Thing, ...]
    floor: str = "grey"
    sky: str = "day"
    light: Light = Light()
    camera: Camera = Camera()
    tint: float = 0.0  # brightness of the floor, about -0.06 … 0.06

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Scene.from_dict` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Scene":
        parts: dict[str, Any] = dict(data)
        parts["things"] = tuple(Thing(**t) for t in data["things"])
        parts["light"], parts["camera"] = Light(**data["light"]), Camera(**data["camera"])
        return Scene(**parts)


class Box(NamedTuple):
    """A rectangle of the picture, in [0, 1]."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return max(self.x1 - self.x0, 0.0) * max(self.y1 - self.y0, 0.0)

    def overlap(self, other: "Box") -> float:
        """Shared area as a fraction of the smaller of the two."""
        shared = Box(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))
        return shared.area / min(self.area, other.area)


def outline(thing: Thing) -> list[tuple[float, float, float]]:
    """Points of the world whose convex hull just contains the thing (a sphere's is a cube, `box` knows better)."""
    half, height = HALF_WIDTH[thing.shape], HEIGHT[thing.shape]
    turn = thing.angle
    if thing.shape in _SQUARE:
        square = [(-half, -half), (-half, half), (half, -half), (half, half)]
        local = [(a, b, 0.0) for a, b in square]
        local += [(a, b, height) for a, b in square] if thing.shape == "cube" else [(0.0, 0.0, height)]
    elif thing.shape == "torus":
        middle = half - 0.6 * TUBE
        local = [(half * a, y, half + half * b) for a, b in _RING for y in (-0.4 * TUBE, 0.4 * TUBE)]
        local += [(middle * a, y, half + middle * b) for a, b in _RING for y in (-TUBE, TUBE)]
    else:
        turn = 0.0
        local = [(half * a, half * b, 0.0) for a, b in _RING]
        local += [(0.0, 0.0, height)] if thing.shape == "cone" else [(a, b, height) for a, b, _ in local]
    c, s, k = math.cos(turn), math.sin(turn), thing.scale
    return [(thing.x + k * (c * a - s * b), thing.y + k * (s * a + c * b), thing.base_z + k * z) for a, b, z in local]


def box(thing: Thing, camera: Camera) -> Box:
    """Bounding box of the thing in the picture, exact or up to 2 % of its width too large."""
    if thing.shape == "sphere":
        return _sphere_box(thing, camera)
    points = [camera.project(*p) for p in outline(thing)]
    us, vs = [p[0] for p in points], [p[1] for p in points]
    return Box(min(us), min(vs), max(us), max(vs))


def _sphere_box(thing: Thing, camera: Camera) -> Box:
    """The planes through the eye that touch a ball, upright and level."""
    u, v, depth = camera.project(thing.x, thing.y, thing.base_z + thing.height / 2)
    radius2 = (thing.height / 2) ** 2
    ends = []
    for slope in ((u - 0.5) / FOCAL, (v - 0.5) / FOCAL):
        root = math.sqrt(radius2 * ((slope * slope + 1) * depth * depth - radius2))
        ends += [0.5 + FOCAL * (slope * depth * depth + s * root) / (depth * depth - radius2) for s in (-1, 1)]
    return Box(ends[0], ends[2], ends[1], ends[3])


def truth(scene: Scene) -> list[dict[str, Any]]:
    """For every thing its attributes, its `box` (x0, y0, x1, y1) and `centre` in picture coordinates, and `depth`."""
    found = []
    for thing in scene.things:
        u, v, depth = scene.camera.project(thing.x, thing.y, thing.base_z + thing.height / 2)
        names = {k: getattr(thing, k) for k in ("shape", "colour", "size", "material", "pattern")}
        found.append({**names, "box": tuple(box(thing, scene.camera)), "centre": (u, v), "depth": depth})
    return found


def relation(a: Thing, b: Thing) -> str | None:
    """How `a` stands to `b` where that is plain to see; None for diagonal neighbours and the like."""
    if a.base_z != b.base_z:
        return None
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > max(0.55, 1.5 * abs(dy)):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > max(0.55, 1.4 * abs(dx)):
        return "in front of" if dy < 0 else "behind"
    return None


def relations(scene: Scene) -> list[tuple[int, str, int]]:
    """Every (i, relation, j) that holds unmistakably, in both directions where the relation has an opposite."""
    found = []
    for i, a in enumerate(scene.things):
        for j, b in enumerate(scene.things):
            name = "on top of" if a.support == j else relation(a, b) if i != j else None
            if name is not None:
                found.append((i, name, j))
    return found
