"""The procedural shapes world: 3-D scenes, rendered by our own code, with exact captions.

A sample is a pure function of its seed: `scene.py` says what is in it, `layout.py` draws and composes scenes,
`render.py` traces any window at any size, `captions.py` writes three captions. Pictures are float32 in [-1, 1].

    batch = shapes.batch(range(64), size=64)          # {"image": (64, 3, 64, 64), "caption": 64 strings, …}
    scene = shapes.compose([("red", "cube"), ("blue", "sphere")], "left of")
    picture = shapes.render(scene, 256)
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from t2i.core.seed import mix
from t2i.data.shapes.captions import KINDS, WEIGHTS, WORDS, captions
from t2i.data.shapes.layout import NUM_THINGS, compose, sample_scene, scene_from_seed
from t2i.data.shapes.render import Window, render
from t2i.data.shapes.scene import CLASSES, Scene, Thing, relations, truth

__all__ = [
    "CLASSES",
    "KINDS",
    "NUM_THINGS",
    "WEIGHTS",
    "WORDS",
    "Scene",
    "Thing",
    "batch",
    "captions",
    "compose",
    "crops",
    "draw",
    "relations",
    "render",
    "sample",
    "sample_scene",
    "scene_from_seed",
    "texts",
    "truth",
]


def sample(seed: int, size: int = 64, window: Window | None = None) -> dict[str, Any]:
    """Sample `seed`: `image` (3, size, size), `captions` by kind, `caption` of a random kind, `scene` as JSON text."""
    whole = batch([seed], size, window)
    return {name: values[0] for name, values in whole.items()}


def batch(
    seeds: Sequence[int],
    size: int = 64,
    window: Window | Sequence[Window] | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    num_things: Mapping[int, float] = NUM_THINGS,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The samples of these seeds, drawn together; each is the same as when drawn alone.

    Args:
        seeds: B integers.
        size: side of the pictures in pixels.
        window: what part of the pictures to draw, see `render`.
        weights: how often `caption` is of each kind.
        num_things: how often a scene has one, two, three or four things.
        device: where to draw.

    Returns:
        `image` (B, 3, size, size), and lists of length B: `caption`, `captions` (one dict of kinds each), `scene`
        (JSON text), `label` (of the first thing, in `CLASSES`), `seed`, `key`.
    """
    scenes = [scene_from_seed(s, num_things) for s in seeds]
    return {"image": render(scenes, size, window, device=device), **_texts(seeds, scenes, weights)}


def crops(
    seeds: Sequence[int],
    full_size: int,
    crop: int,
    weights: Mapping[str, float] = WEIGHTS,
    num_things: Mapping[int, float] = NUM_THINGS,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """One random window per seed of the pictures at `full_size`, as upsamplers train on; see `batch` for the rest.

    Returns:
        As `batch`, with `image` (B, 3, crop, crop) at the resolution of the full picture, and `window` (B, 4) float32:
        x0, y0, x1, y1 in [0, 1]. Windows start at multiples of 4 pixels.

    Raises:
        ValueError: if the crop is larger than the picture or either is no multiple of 4.
    """
    if crop > full_size or crop % 4 or full_size % 4:
        raise ValueError(f"crop {crop} must fit into full_size {full_size}, and both be multiples of 4")
    scenes = [scene_from_seed(s, num_things) for s in seeds]
    windows = []
    for seed in seeds:
        rng = random.Random(mix(seed, "window"))
        x, y = (4 * rng.randint(0, (full_size - crop) // 4) for _ in range(2))
        windows.append((x / full_size, y / full_size, (x + crop) / full_size, (y + crop) / full_size))
    image = render(scenes, crop, windows, device=device)
    return {"image": image, "window": torch.tensor(windows), **_texts(seeds, scenes, weights)}


def draw(
    seeds: Sequence[int],
    size: int,
    crop: int | None = None,
    weights: Mapping[str, float] = WEIGHTS,
    num_things: Mapping[int, float] = NUM_THINGS,
) -> dict[str, Any]:
    """`batch`, or `crops` where only a window of each picture is wanted."""
    if crop is None:
        return batch(seeds, size, weights=weights, num_things=num_things)
    return crops(seeds, size, crop, weights=weights, num_things=num_things)


def texts(
    seeds: Sequence[int], weights: Mapping[str, float] = WEIGHTS, num_things: Mapping[int, float] = NUM_THINGS
) -> dict[str, Any]:
    """`batch` without the pictures, which take longest."""
    return _texts(seeds, [scene_from_seed(s, num_things) for s in seeds], weights)


def _texts(seeds: Sequence[int], scenes: Sequence[Scene], weights: Mapping[str, float]) -> dict[str, Any]:
    every = [captions(scene, random.Random(mix(seed, "captions"))) for seed, scene in zip(seeds, scenes, strict=True)]
    kinds = [random.Random(mix(s, "kind")).choices(list(weights), list(weights.values()))[0] for s in seeds]
    return {
        "caption": [texts[kind] for texts, kind in zip(every, kinds, strict=True)],
        "captions": every,
        "scene": [json.dumps(scene.to_dict()) for scene in scenes],
        "label": [CLASSES.index(f"{scene.things[0].colour} {scene.things[0].shape}") for scene in scenes],
        "seed": list(seeds),
        "key": [f"{seed:09d}" for seed in seeds],
    }
