"""Batches of a data source to measure on: a given number of samples, with a bar."""

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor

from t2i.core.progress import bar
from t2i.core.types import Batch
from t2i.data.loader import Loader
from t2i.data.scenes import ShapesSource


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
