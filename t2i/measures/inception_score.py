"""The Inception Score (Salimans et al. 2016): are pictures surely of some class, and of all classes?

B batch · N pictures · K classes · S chunks
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = 10


class Inception(NamedTuple):
    """Mean over chunks, and their standard deviation."""

    mean: float
    sd: float


class InceptionScore:
    """exp E KL(p(y | x) ‖ p(y)), the mean over S chunks, of logits that come in batches.

    Pictures are put into chunks as by torch-fidelity, after a shuffle that follows from their number; so it must be
    known beforehand, and of each chunk only sums are kept.

    Args:
        num: N, pictures in all. num_classes: K.
    """

    def __init__(self, num: int, num_classes: int, splits: int = SPLITS) -> None:
        self.chunk = chunks(num, splits)
        shape = int(self.chunk.max()) + 1
        self.counts = torch.zeros(shape, dtype=torch.float64)  # (S,)
        self.p = torch.zeros(shape, num_classes, dtype=torch.float64)  # (S, K), sums of p(y | x)
        self.negentropy = torch.zeros(shape, dtype=torch.float64)  # (S,), sums of Σ p log p

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Take in logits (B, K) of the pictures of these numbers (B,) in 0 … N - 1."""
        logits = logits.detach().cpu().double()
        p, chunk = logits.softmax(dim=1), self.chunk[indices]
        self.counts.index_add_(0, chunk, torch.ones(len(p), dtype=torch.float64))
        self.p.index_add_(0, chunk, p)
        self.negentropy.index_add_(0, chunk, (p * logits.log_softmax(dim=1)).sum(dim=1))

    def merge(self, other: "InceptionScore") -> None:
        """Take in what another one has seen of the same pictures."""
        self.counts += other.counts
        self.p += other.p
        self.negentropy += other.negentropy

    def value(self) -> Inception:
        """Over the chunks that have pictures."""
        some = self.counts > 0
        counts, q = self.counts[some], self.p[some] / self.counts[some, None]
        divergence = self.negentropy[some] / counts - torch.special.xlogy(q, q).sum(dim=1)
        scores = divergence.exp()
        return Inception(float(scores.mean()), float(scores.std(correction=0)))


def chunks(num: int, splits: int = SPLITS) -> Tensor:
    """The chunk of every picture, (N,)."""
    splits = max(1, min(splits, num))
    order = np.random.RandomState(2020).permutation(num)
    found = torch.zeros(num, dtype=torch.long)
    for i in range(splits):
        found[torch.from_numpy(order[i * num // splits : (i + 1) * num // splits])] = i
    return found
