"""Numbers by which stages recognise the frozen neighbour that they learned from."""

from collections.abc import Sequence

import torch

_SAME = 0.98  # cosine; rounding weights to 8 bits moves it by less than a hundredth


def same(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two fingerprints are of one network, maybe stored in fewer bits."""
    a, b = torch.tensor(ours), torch.tensor(theirs)
    return len(a) == len(b) and bool(torch.cosine_similarity(a, b, dim=0) >= _SAME)
