"""The bundled ADM, 60 classes of one thing in 32 px, for the claims about guidance."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from lab import ROOT, embedded, open_pipeline, pictures
from torch import Tensor

from t2i.data import shapes
from t2i.evals.compose import load_reader
from t2i.stages.registry import load_stage

SIDE = 32
_HELD_OUT = 1 << 41


@cache
def opened() -> Any:
    """The pipeline."""
    return open_pipeline("shapes-adm")


def labels(num: int) -> list[int]:
    """`num` pictures of every class, side by side."""
    return [label for label in range(len(shapes.CLASSES)) for _ in range(num)]


def drawn(num: int, steps: int, seed: int = 0, classes: int = 60, **guidance: float) -> Tensor:
    """Pictures (classes · num, 3, 32, 32), by ancestral sampling; the noise is the same at every scale."""
    pipe = opened()
    made = [
        pipe(
            list(range(first, min(first + 20, classes))), num_images=num, seed=seed + first * num, steps=steps,
            guidance={"decoder": 1.0, "classifier": 0.0} | guidance, progress=False,
        )
        for first in range(0, classes, 20)
    ]  # fmt: skip
    return torch.cat([pictures(part) for part in made])


def right(images: Tensor, wanted: list[int]) -> list[float]:
    """100 for each picture in which the reader finds its class alone, else 0."""
    found = [things for part in images.split(100) for things in load_reader().read(part)]
    return [
        100.0 * ([f"{t.colour} {t.shape}" for t in things] == [shapes.CLASSES[label]])
        for things, label in zip(found, wanted, strict=True)
    ]


@torch.no_grad()
def probabilities(images: Tensor) -> Tensor:
    """p(class | picture) (N, 60) float64, by the bundled classifier, told that nothing is noised."""
    model: Any = load_stage(ROOT / "weights/shapes-adm/classifier", expect="classifier")
    zero = torch.zeros(100, dtype=torch.long)
    return torch.cat([model(part, zero[: len(part)]) for part in images.split(100)]).double().softmax(dim=1)


def inception_score(p: Tensor) -> float:
    """exp E KL(p(y | x) | p(y)) of (N, K); Salimans et al. 2016."""
    divergence = F.kl_div(p.mean(dim=0).log(), p, reduction="none").sum(dim=1)
    return float(divergence.mean().exp())


@cache
def renders(num: int) -> Tensor:
    """Embeddings (60 · num, D) of held-out renders, as many of each class."""
    found: dict[int, list[Tensor]] = {label: [] for label in range(60)}
    seed = _HELD_OUT
    while any(len(have) < num for have in found.values()):
        texts = shapes.texts(range(seed, seed + 100), num_things={1: 1.0})
        wanted = [s for s, label in zip(texts["seed"], texts["label"], strict=True) if len(found[label]) < num]
        batch = shapes.batch(wanted, SIDE, num_things={1: 1.0})
        for image, label in zip(batch["image"], batch["label"], strict=True):
            if len(found[label]) < num:
                found[label].append(image)
        seed += 100
    return embedded(torch.stack([image for have in found.values() for image in have]))
