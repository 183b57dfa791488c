"""How sure a number is that was measured on some pictures."""

from collections.abc import Callable

import torch
from torch import Tensor


def bootstrap(f: Callable[..., float], sets: list[Tensor], times: int, seed: int = 0) -> float:
    """Half of a 95 % interval of f(*sets): 1.96 standard deviations over random draws of as many rows of each set, with
    replacement (Efron 1979). It is meant around the value itself: what is drawn twice biases distances upwards."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(times):
        drawn = [x[torch.randint(len(x), (len(x),), generator=random)] for x in sets]
        found.append(f(*drawn))
    return 1.96 * float(torch.tensor(found, dtype=torch.float64).std())


def affordable(dim: int) -> int:
    """Draws of a bootstrap whose every value costs a decomposition in `dim` dimensions."""
    return 200 if dim <= 256 else 50 if dim <= 1024 else 10
