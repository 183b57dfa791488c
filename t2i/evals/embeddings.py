"""How well drawn embeddings stand for true ones, and what variances of the steps are worth.

N embeddings · D width · T steps of a process
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from t2i.diffusion.prediction import Parametrisation
from t2i.diffusion.process import Process


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the Gaussians of the moments of two sets (N, D) (Heusel et al. 2017, eq. 6); biased
    upwards, by about as much for every set of N."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)  # (D, D)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()  # trace of (cov_a cov_b)^(1/2)
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both)


def variance_ratio(drawn: Tensor, true: Tensor) -> float:
    """Mean over dimensions of the variance of one set (N, D) over that of another; 1 is right."""
    return float((drawn.double().var(dim=0) / true.double().var(dim=0)).mean())


def compare(drawn: Tensor, true: Tensor) -> dict[str, float]:
    """Of two sets (N, D), row i of one being drawn for what row i of the other is."""
    return {
        "frechet": frechet(drawn, true),
        "variance_ratio": variance_ratio(drawn, true),
        "cosine": float(torch.cosine_similarity(drawn, true).mean()),
    }


def bound(process: Process, errors: Tensor, parametrisation: Parametrisation) -> float:
    """Nats per dimension, at most, that continuous data costs in the steps of a process (Ho et al. 2020, eq. 5).

    Args:
        errors: (T,) float64, mean squared errors of x_0 at every step, per dimension.
        parametrisation: whose variances depend on the step alone.

    The cost of x_T is left out: it is the same for all variances, and next to nothing.
    """
    table, v = process.tables, parametrisation.x_0_variance
    like = torch.zeros(1, device=None if v is None else v.device)
    rows = [parametrisation.log_variance(process, None, like, step) for step in range(process.num_steps)]
    log_variance = torch.cat(rows).cpu().double()
    lower, variance = table["posterior_variance"], log_variance.exp()  # (T,)
    around = lower + table["posterior_x_0"].square() * errors  # what x_{n-1} varies around the mean that is predicted
    divergence = 0.5 * (log_variance[1:] - lower[1:].log() - 1 + around[1:] / variance[1:])
    density = 0.5 * (math.log(2 * math.pi) + log_variance[0] + around[0] / variance[0])  # of x_0 itself
    return float(divergence.sum() + density)


def table(rows: Mapping[str, Mapping[str, float]], what: str) -> str:
    """Lines to print of what `compare` says of each row, and of its `bound` where there is one."""
    lines = [what, f"{'variance':<16}{'Fréchet':>9}{'variance ratio':>16}{'cosine':>9}{'nats/dim':>11}"]
    for name, row in rows.items():
        bound = f"{row['bound']:>11.4f}" if "bound" in row else ""
        lines.append(f"{name:<16}{row['frechet']:>9.4f}{row['variance_ratio']:>16.4f}{row['cosine']:>9.4f}{bound}")
    if "analytic" not in rows:
        lines.append("its analytic variances were never measured; t2i calibrate does that")
    return "\n".join(lines)
