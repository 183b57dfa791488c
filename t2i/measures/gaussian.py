"""Sets of features as Gaussians, and how far apart two are (Fréchet Inception Distance: Heusel et al. 2017).

B batch · N pictures · D features
"""

import torch
from torch import Tensor


class Moments:
    """Number, mean and covariance of features that come in batches, in float64.

    Batches are merged as by Chan, Golub & LeVeque 1983, so that nothing cancels, and D² numbers are kept, however many
    features there are.
    """

    def __init__(self, dim: int) -> None:
        self.num = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)  # (D,)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # (D, D), sum of (x - mean)(x - mean)ᵀ

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of all of them at once, (N, D)."""
        found = cls(features.shape[1])
        found.add(features)
        return found

    def add(self, features: Tensor) -> None:
        """Take in (B, D)."""
        x = features.detach().cpu().double()
        if len(x):
            mean = x.mean(dim=0)
            self._merge(len(x), mean, (x - mean).mT @ (x - mean))

    def merge(self, other: "Moments") -> None:
        """Take in what another one has seen."""
        if other.num:
            self._merge(other.num, other.mean, other.scatter)

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (D, D), of at least two."""
        return self.scatter / (self.num - 1)

    def _merge(self, num: int, mean: Tensor, scatter: Tensor) -> None:
        total, apart = self.num + num, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(apart, apart) * (self.num * num / total)
        self.mean = self.mean + apart * (num / total)
        self.num = total


def frechet(a: Moments, b: Moments) -> float:
    """Fréchet distance |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) of Gaussians (Dowson & Landau 1982, equation 16).

    With Σ = L Lᵀ the trace of the root is the sum of the singular values of L1ᵀ L2: nothing is inverted, no root of a
    rounding error is taken, and fewer pictures than features are as exact as many.
    """
    return _frechet(a.mean - b.mean, _factor(a.cov), _factor(b.cov))


def frechet_of_features(x: Tensor, y: Tensor) -> float:
    """`frechet` of (N, D) and (M, D), quicker where there are fewer pictures than features."""
    x, y = x.double(), y.double()
    return _frechet(x.mean(dim=0) - y.mean(dim=0), _factor_of(x), _factor_of(y))


def _frechet(apart: Tensor, a: Tensor, b: Tensor) -> float:
    """Of a difference of means (D,) and factors (D, r) and (D, s) of covariances, whose traces are sums of squares."""
    root = torch.linalg.svdvals(a.mT @ b).sum()
    return max(0.0, float(apart.square().sum() + a.square().sum() + b.square().sum() - 2 * root))


def _factor_of(x: Tensor) -> Tensor:
    """L of the covariance of (N, D): the centred features themselves, where that is the smaller of the two."""
    if len(x) > x.shape[1]:
        return _factor(Moments.of(x).cov)
    return (x - x.mean(dim=0)).mT / (len(x) - 1) ** 0.5


def _factor(cov: Tensor) -> Tensor:
    """L (D, r) with L Lᵀ = cov, of its rank r as far as rounding lets it be told."""
    values, vectors = torch.linalg.eigh(cov)
    some = values > values.max().clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, some] * values[some].sqrt()
