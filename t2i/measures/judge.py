"""Measures of what a training draws, against the pictures that it holds out (`train.eval`).

B pictures of a batch · N in all
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.measures.extractors import open_extractor
from t2i.measures.measure import METRICS, check_metrics, measure
from t2i.measures.statistics import Facts, Statistics


class PairsJudge:
    """Sees drawn and held-out pictures by one extractor.

    Raises UsageError for metrics that nobody knows, and for those that the extractor, or pictures without captions,
    cannot give.
    """

    def __init__(self, metrics: Sequence[str], extractor: str, device: torch.device | str = "cpu") -> None:
        check_metrics(metrics)
        self.metrics, self.extractor = tuple(metrics), open_extractor(extractor, device)
        for name in metrics:
            if METRICS[name].needs == "text":
                raise UsageError(f"train.eval.metrics: {name} is measured by t2i eval pictures, not while training")
            if METRICS[name].needs == "logits" and self.extractor.num_classes is None:
                raise UsageError(f"train.eval.metrics: {name} needs classes, and {self.extractor.name} tells none")

    def look(self, pairs: Iterator[tuple[Tensor, Tensor, Tensor]], num: int) -> tuple[Statistics, Statistics]:
        """The statistics of this process's share of N pictures, drawn and held out, (B, 3, H, W) in [-1, 1]."""
        drawn, real = (self._statistics(name, num) for name in ("drawn pictures", "held-out pictures"))
        for numbers, images, others in pairs:
            drawn.add(numbers, self.extractor(_bytes(images)))
            real.add(numbers, self.extractor(_bytes(others)))
        return drawn, real

    def numbers(self, seen: Sequence[tuple[Statistics, Statistics]]) -> dict[str, Any]:
        """What was measured by name, `num` and `extractor`, of what all processes have seen."""
        drawn, real = seen[0]
        for more, others in seen[1:]:
            drawn.merge(more)
            real.merge(others)
        found = measure(self.metrics, drawn, real, resamples=0)
        told: dict[str, Any] = {key_of(number.label): number.value for number in found}
        return told | {"num": drawn.count, "extractor": self.extractor.name}

    def _statistics(self, name: str, num: int) -> Statistics:
        see = self.extractor
        return Statistics(Facts(see.name, see.sha256, see.resize, see.dim, see.num_classes, name), num)


def key_of(label: str) -> str:
    """`frechet_distance` of `Fréchet distance (CLIP of shapes)`."""
    plain = label.partition(" (")[0].replace("é", "e").lower()
    return re.sub(r"\W+", "_", re.sub(r" of \d+$", "", plain))


def _bytes(images: Tensor) -> Tensor:
    """uint8 of pictures in [-1, 1], one channel as three."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
