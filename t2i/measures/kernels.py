"""Distances of sets of features by a kernel: maximum mean discrepancies (Gretton et al. 2012).

N M pictures · D features · S pictures of a subset
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.core.errors import UsageError

_BLOCK = 1000  # rows of a kernel at once


class Kid(NamedTuple):
    """Mean over subsets, their standard deviation, and how many of how many pictures there were."""

    mean: float
    sd: float
    subsets: int
    size: int


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Kid:
    """Kernel Inception Distance (Bińkowski et al. 2018): the unbiased MMD² of the kernel (xᵀy / D + 1)³ over random
    subsets; it may be negative. The subsets are those of torch-fidelity, whose numbers these are.

    Args:
        x, y: (N, D), (M, D).
        size: pictures of a subset of each; all of the smaller set where that has fewer.

    Raises UsageError for fewer than two pictures.
    """
    if min(len(x), len(y)) < 2:
        raise UsageError(f"KID compares sets of two pictures or more, got {len(x)} and {len(y)}")
    size, rng = min(size, len(x), len(y)), np.random.RandomState(seed)
    x, y = x.double(), y.double()
    found = []
    for _ in range(subsets):
        few = torch.from_numpy(rng.choice(len(x), size, replace=False))
        others = torch.from_numpy(rng.choice(len(y), size, replace=False))
        found.append(_polynomial_mmd(x[few], y[others]))
    values = torch.tensor(found, dtype=torch.float64)
    return Kid(float(values.mean()), float(values.std(correction=0)), subsets, size)


def _polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD² of (S, D) and (S, D)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / a.shape[1] + 1) ** 3

    size, xx, yy = len(x), kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
    return float(within - 2 * kernel(x, y).mean())


def cmmd(x: Tensor, y: Tensor, *, sigma: float = 10.0) -> float:
    """CMMD (Jayasumana et al. 2024): 1000 times the MMD² of a Gaussian kernel of width `sigma` between CLIP embeddings
    (N, D) and (M, D), which are divided by their norms here; biased, diagonals included, as in the paper's code."""
    x, y = (z.double() / z.double().norm(dim=1, keepdim=True).clamp(min=1e-12) for z in (x, y))

    def mean(a: Tensor, b: Tensor) -> float:
        total = sum(float((-torch.cdist(part, b).square() / (2 * sigma**2)).exp().sum()) for part in a.split(_BLOCK))
        return total / (len(a) * len(b))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
