"""Fidelity and diversity by nearest neighbours: precision and recall (Kynkäänniemi et al. 2019), density and coverage
(Naeem et al. 2020).

N real pictures · M drawn ones · D features · k neighbours. The ball of a picture reaches to its k-th neighbour among
the others of its own set.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from t2i.core.errors import UsageError

_BLOCK = 500  # rows of distances at once
_TIE = 1e-12  # of the largest squared norm: squared distances that differ by less are equal, whatever was rounded


class Neighbours(NamedTuple):
    """Shares in [0, 1]; density may be above 1.

    precision: of drawn pictures that lie in the ball of a real one. recall: of real pictures that lie in the ball of a
    drawn one. density: balls of real pictures that a drawn one lies in, on average, divided by k. coverage: of real
    pictures in whose ball a drawn one lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(drawn: Tensor, real: Tensor, k: int = 3) -> Neighbours:
    """All four of (M, D) and (N, D), with the same k; a picture on the edge of a ball lies in it.

    Raises UsageError for sets of k pictures or fewer.
    """
    if min(len(drawn), len(real)) <= k:
        raise UsageError(f"{k} neighbours need sets of more than {k} pictures, got {len(drawn)} and {len(real)}")
    middle = real.double().mean(dim=0)
    drawn, real = drawn.double() - middle, real.double() - middle  # nothing cancels where features are far from zero
    slack = _TIE * float(torch.cat([drawn, real]).square().sum(dim=1).max())
    around_real, around_drawn = (radii(x, k).square() + slack for x in (real, drawn))  # (N,), (M,)
    inside = torch.zeros(len(drawn), dtype=torch.long)  # balls of real pictures that each lies in
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for first in range(0, len(drawn), _BLOCK):
        rows = slice(first, first + _BLOCK)
        far = _distances(drawn[rows], real)  # (b, N)
        within = far <= around_real
        inside[rows] = within.sum(dim=1)
        covered |= within.any(dim=0)
        recalled |= (far <= around_drawn[rows, None]).any(dim=0)
    return Neighbours(*(float(x.double().mean()) for x in (inside > 0, recalled, inside.double() / k, covered)))


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of every row of (N, D) to its k-th nearest other one, (N,)."""
    parts = [_distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(_BLOCK)]  # itself is the nearest
    return torch.cat(parts).sqrt()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared, by the expansion of squares: a product of matrices, many times as fast as differences."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(squares, a, b.mT, alpha=-2).clamp(min=0)
