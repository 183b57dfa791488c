"""Small unconditional networks of one thing in 16 px, trained in minutes, for the claims about training and about what
a network is made of; and how they are measured."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lab import Difference, Lab, Value, embedded, frechet
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.core.types import Condition
from t2i.data import shapes
from t2i.diffusion.sampling import Sampling
from t2i.stages.decoder.sample import sample
from t2i.stages.registry import load_stage

SIZE = 16
WORLD = [
    f"data.size={SIZE}", f"model.image_size={SIZE}", "data.num_things={1: 1}", "model.unet.multipliers=[1,2]",
    "model.unet.attention=[2]", "model.unet.num_blocks=1", "train.precision=fp32",
]  # fmt: skip
FIXED = ["model.diffusion.variance=fixed_large", "model.unet.out_channels=3", "task.kind=simple"]
_HELD_OUT = 1 << 41


def trained(lab: Lab, arm: str, seed: int, config: str, *overrides: str, steps: int = 800) -> Path:
    """One network; arms of several claims that are alike share their trainings, and wait while another trains it."""
    name = f"../small/{arm}-{seed}{'-tiny' if lab.tiny else ''}"
    size = ["train.steps=2", "train.batch_size=2"] if lab.tiny else [f"train.steps={steps}", "train.batch_size=32"]
    while True:
        try:
            return lab.train(name, config, *WORLD, *size, f"train.seed={seed}", *overrides)
        except UsageError as error:
            if " is being " not in str(error):  # written by another process
                raise
            time.sleep(5)


@torch.no_grad()
def drawn(folder: Path, num: int, sampling: Sampling, labels: bool = False, seed: int = 0) -> Tensor:
    """Pictures (N, 3, S, S) of a network; with `labels` of all its classes in turn."""
    model: Any = load_stage(folder, expect="decoder")
    parts = []
    for first in range(0, num, 100):
        seeds = list(range(first, min(first + 100, num)))
        condition = Condition()
        if labels:
            count = model.config.ports.classes.num
            condition = model.condition(_of_classes([s % count for s in seeds]))
        parts.append(sample(model, condition, Streams([seed + s for s in seeds], "claim"), sampling))
    return torch.cat(parts)


def _of_classes(labels: list[int]) -> Any:
    from t2i.nn.ports import Given

    return Given(len(labels), classes=torch.tensor(labels))


@cache
def held_out(num: int, size: int = SIZE) -> Tensor:
    """Embeddings (N, D) of renders that nothing is trained on."""
    seeds = range(_HELD_OUT, _HELD_OUT + num)
    parts = [shapes.batch(seeds[i : i + 100], size, num_things={1: 1.0})["image"] for i in range(0, num, 100)]
    return embedded(torch.cat(parts))


def distance(images: Tensor) -> float:
    """Fréchet distance of pictures to as many held-out renders, in the bundled CLIP's embeddings."""
    return frechet(embedded(images), held_out(len(images), images.shape[-1]))


def over_seeds(what: str, worse: Sequence[float], better: Sequence[float]) -> Difference:
    """`worse` - `better`, of trainings of the same seeds."""
    return Difference(what, Value.of_trainings([w - b for w, b in zip(worse, better, strict=True)]))
