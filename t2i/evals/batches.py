"""Batches to measure on: of a data source, with a bar, and of held-out renders with the scenes behind them."""

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from t2i.core.progress import bar
from t2i.core.types import Batch
from t2i.data import shapes
from t2i.data.loader import Loader
from t2i.data.scenes import VAL_SCENES, ShapesSource
from t2i.data.shapes.scene import Scene


class Renders(NamedTuple):
    """Held-out scenes, and what they look like, `image` (B, 3, S, S) in [-1, 1]."""

    seeds: range
    scenes: list[Scene]
    image: Tensor


def held_out(num: int, size: int, *, seed: int = 0, batch_size: int = 32) -> Iterator[Renders]:
    """The held-out scenes `seed`, `seed` + 1, …, `num` of them, in pictures of `size` pixels."""
    for first in range(seed, seed + num, batch_size):
        seeds = range(first, min(first + batch_size, seed + num))
        scenes = [shapes.scene_from_seed(s | VAL_SCENES) for s in seeds]
        yield Renders(seeds, scenes, shapes.render(scenes, size))


def pictures(loader: Loader, num: int, device: torch.device) -> Iterator[Batch]:
    """Batches of `num` samples on a device, or of as many as there are."""
    files = [source for source in loader.data.sources if not isinstance(source, ShapesSource)]
    if len(files) == len(loader.data.sources):
        num = min(num, sum(len(source) for source in files))
    with closing(iter(loader)) as batches, bar(num, unit="picture", leave=False) as told:
        while num > 0:
            batch = {key: value[:num] for key, value in next(batches).items()}
            yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            num -= len(batch["seed"])
            told.update(len(batch["seed"]))
