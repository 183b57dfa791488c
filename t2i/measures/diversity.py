"""How different the pictures of one set are.

N pictures · D features
"""

from typing import NamedTuple

import torch
from torch import Tensor


def vendi(features: Tensor) -> float:
    """The Vendi Score (Friedman & Dieng 2023): how many wholly different pictures are as different as these (N, D).

    It is the exponential of the entropy of the eigenvalues of K / N, K being the cosines of all pairs; those of the
    smaller of the two products are taken, which are the same.
    """
    x = features.double() / features.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    product = x @ x.mT if len(x) <= x.shape[1] else x.mT @ x
    values = torch.linalg.eigvalsh(product / len(x)).clamp(min=0)
    return float((-torch.special.xlogy(values, values).sum()).exp())


class Apart(NamedTuple):
    """Mean distance of two pictures, and its standard deviation."""

    mean: float
    sd: float


def pair_distance(features: Tensor) -> Apart:
    """Mean cosine distance of two different pictures of (N, D), 0 … 2; nan of fewer than two.

    Its standard deviation is that of a U-statistic, to first order (Hoeffding 1948).
    """
    x = features.double() / features.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    num = len(x)
    if num < 2:
        return Apart(float("nan"), float("nan"))
    far = 1 - (x @ x.sum(dim=0) - x.square().sum(dim=1)) / (num - 1)  # (N,), of each to the others, on average
    return Apart(float(far.mean()), 2 * float(far.std()) / num**0.5)


def clip_scores(image: Tensor, text: Tensor) -> Tensor:
    """CLIP score of every picture and its sentence, both (B, D) → (B,): 100 · cosine, as in DALL-E 3's paper."""
    return 100 * torch.nn.functional.cosine_similarity(image.double(), text.double(), dim=1)
