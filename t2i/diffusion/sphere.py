"""Walks between embeddings and between noises: vectors of which the direction says what they mean (Ramesh et al. 2022,
sections 3 and 4).

N vectors · D width of embeddings · K principal components
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SAME = 1e-6  # length below which a difference of unit vectors is rounding


def slerp(a: Tensor, b: Tensor, theta: float | Tensor) -> Tensor:
    """Spherical interpolation, row by row: [sin((1 - theta) Omega) a + sin(theta Omega) b] / sin Omega, Omega being the
    angle between a and b. Vectors of one length keep it and turn at an even pace; parallel ones change in a straight
    line. Between opposite ones there are many great circles, and one of them is taken, the same every time.

    Args:
        a, b: (N, …), rows of any shape, such as embeddings (N, D) or noises (N, C, H, W).
        theta: one number, or (N,).

    Returns (N, …), of the type of a. Raises ValueError for other shapes, and for a row of length 0, which has no
    direction.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"slerp is between rows of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    start, end = a.flatten(1).double(), b.flatten(1).double()  # (N, D)
    from_length, to_length = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)  # (N, 1)
    if not bool((from_length > 0).all() and (to_length > 0).all()):
        raise ValueError("slerp is between directions, and a vector of length 0 has none")
    a_unit, b_unit = start / from_length, end / to_length
    share = torch.as_tensor(theta, dtype=torch.float64, device=a.device).reshape(-1, 1)  # (N, 1) or (1, 1)
    # Kahan's angle, exact to rounding also where the cosine is near 1 or -1
    angle = 2 * torch.atan2((a_unit - b_unit).norm(dim=1, keepdim=True), (a_unit + b_unit).norm(dim=1, keepdim=True))
    parallel, opposite = angle < _SAME, angle > torch.pi - _SAME  # (N, 1)
    sine = torch.where(parallel | opposite, 1.0, angle.sin())
    of_a = torch.where(parallel, 1 - share, ((1 - share) * angle).sin() / sine)
    of_b = torch.where(parallel, share, (share * angle).sin() / sine)
    turned = (share * angle).cos() * a_unit + (share * angle).sin() * _across(a_unit)
    length = from_length + share * (to_length - from_length)
    out = torch.where(opposite, length * turned, of_a * start + of_b * end)
    return out.reshape(a.shape).to(a.dtype)


def text_direction(after: Tensor, before: Tensor) -> Tensor:
    """z_d = (z_t - z_t0) / |z_t - z_t0|, both at unit length, (N, D): what a sentence says that another does not
    (section 3.3).

    Raises ValueError where both are embedded at the same place.
    """
    difference = F.normalize(after.double(), dim=1) - F.normalize(before.double(), dim=1)
    if bool((difference.norm(dim=1) <= _SAME).any()):
        raise ValueError("both sentences are embedded at the same place, so nothing leads from one to the other")
    return F.normalize(difference, dim=1).to(after.dtype)


def best_of(z_i: Tensor, z_t: Tensor, by: Literal["dot", "cosine"] = "dot") -> Tensor:
    """Of N candidates (N, B, D) those of the largest dot product with (B, D) (section 2.2), or nearest in angle."""
    scores = (z_i * z_t).sum(dim=-1) if by == "dot" else F.cosine_similarity(z_i, z_t, dim=-1)  # (N, B)
    best = scores.argmax(dim=0)  # (B,)
    return z_i[best, torch.arange(len(best), device=best.device)]


class PrincipalComponents(NamedTuple):
    """`mean` (D,) of embeddings and the `axes` (K, D) along which they differ, orthonormal, the widest first."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, embeddings: Tensor) -> "PrincipalComponents":
        """Those of (N, D) embeddings: K = min(N - 1, D). Raises ValueError for fewer than 2, or other shapes."""
        if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.isfinite().all():
            raise ValueError(f"components are measured on (N, D) finite embeddings, got {tuple(embeddings.shape)}")
        z = embeddings.double()
        mean = z.mean(dim=0)
        axes = torch.linalg.svd(z - mean, full_matrices=False).Vh[: len(z) - 1]
        return cls(mean, axes)

    def keep(self, z: Tensor, num: int) -> Tensor:
        """(N, D) with all but the first `num` components at their mean, as long as before."""
        if not 0 <= num <= len(self.axes):
            raise ValueError(f"cannot keep {num} of {len(self.axes)} components")
        axes = self.axes[:num].to(z.device)
        mean = self.mean.to(z.device)
        kept = mean + (z.double() - mean) @ axes.T @ axes
        return (F.normalize(kept, dim=1) * z.double().norm(dim=1, keepdim=True)).to(z.dtype)


def _across(a: Tensor) -> Tensor:
    """For each unit vector of (N, D) one at a right angle to it, from the axis that it has least of."""
    axis = F.one_hot(a.abs().argmin(dim=1), a.shape[1]).to(a.dtype)
    return F.normalize(axis - (axis * a).sum(dim=1, keepdim=True) * a, dim=1)
