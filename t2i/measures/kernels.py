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
    """Mean over subsets, their standard deviation, and how many of how many pictures there were; `error` is the
    standard deviation of the value itself where every subset is the whole of both sets, else None."""

    mean: float
    sd: float
    subsets: int
    size: int
    error: float | None


class Distance(NamedTuple):
    """A value and its standard deviation."""

    value: float
    sd: float


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
    if size == len(x) == len(y):  # the order of pictures does not matter
        whole = _polynomial_mmd(x, y)
        return Kid(whole.value, 0.0, subsets, size, whole.sd)
    found = []
    for _ in range(subsets):
        few = torch.from_numpy(rng.choice(len(x), size, replace=False))
        others = torch.from_numpy(rng.choice(len(y), size, replace=False))
        found.append(_polynomial_mmd(x[few], y[others]).value)
    values = torch.tensor(found, dtype=torch.float64)
    return Kid(float(values.mean()), float(values.std(correction=0)), subsets, size, None)


def _polynomial_mmd(x: Tensor, y: Tensor) -> Distance:
    """Unbiased MMD² of (S, D) and (S, D)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / a.shape[1] + 1) ** 3

    size, between = len(x), kernel(x, y)
    xx, yy = (((k := kernel(a, a)).sum(dim=1) - k.diagonal()) / (size - 1) for a in (x, y))  # (S,)
    value = xx.mean() + yy.mean() - 2 * between.mean()
    return Distance(float(value), _sd(xx - between.mean(dim=1), yy - between.mean(dim=0)))


def cmmd(x: Tensor, y: Tensor, *, sigma: float = 10.0) -> Distance:
    """CMMD (Jayasumana et al. 2024): 1000 times the MMD² of a Gaussian kernel of width `sigma` between CLIP embeddings
    (N, D) and (M, D), which are divided by their norms here; biased, diagonals included, as in the paper's code."""
    x, y = (z.double() / z.double().norm(dim=1, keepdim=True).clamp(min=1e-12) for z in (x, y))

    def means(a: Tensor, b: Tensor) -> Tensor:  # of every row of a, over all of b
        parts = [((part @ b.mT - 1).clamp(max=0) / sigma**2).exp().mean(dim=1) for part in a.split(_BLOCK)]
        return torch.cat(parts)  # |a - b|² = 2 - 2 aᵀb

    xx, yy, xy, yx = means(x, x), means(y, y), means(x, y), means(y, x)
    return Distance(1000 * float(xx.mean() + yy.mean() - 2 * xy.mean()), 1000 * _sd(xx - xy, yy - yx))


def _sd(x: Tensor, y: Tensor) -> float:
    """Standard deviation of an MMD², to first order (Gretton et al. 2012, theorem 8 and corollary 16).

    Args:
        x, y: how much nearer every picture is to its own set than to the other, in the kernel's mean, (N,) and (M,).
    """
    return 2 * sum(float(z.var()) / len(z) if len(z) > 1 else float("nan") for z in (x, y)) ** 0.5
