"""Numbers by which stages recognise the frozen neighbour that they learned from."""

from collections.abc import Sequence

import torch

_APART = 0.05  # of the longer one's length: weights in 8 bits are up to 0.02 apart, latents of 1.2 times the scale 0.1


def same(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two fingerprints are of one network, maybe stored in fewer bits."""
    a, b = torch.tensor(ours), torch.tensor(theirs)
    return len(a) == len(b) and bool((a - b).norm() <= _APART * torch.maximum(a.norm(), b.norm()))
