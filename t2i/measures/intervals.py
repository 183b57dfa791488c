"""How sure a number is that was measured on some pictures."""

from collections.abc import Callable, Sequence

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


def jackknife(
    f: Callable[..., Sequence[float]], sets: list[Tensor], times: int, *, most: int = 2000, seed: int = 0
) -> tuple[list[float], list[int]]:
    """Halves of 95 % intervals of all that f(*sets) gives, and the rows of the subsets that were drawn.

    It is the jackknife that leaves out many (Shao & Wu 1989): random subsets without replacement, a half of each set
    or less, so that none has more than `most` rows. It holds for nearest neighbours, where a bootstrap does not: what
    that draws twice is its own neighbour.
    """
    random, part = torch.Generator().manual_seed(seed), min(0.5, most / max(len(x) for x in sets))
    sizes = [int(len(x) * part) for x in sets]
    found = []
    for _ in range(times):
        drawn = [x[torch.randperm(len(x), generator=random)[:n]] for x, n in zip(sets, sizes, strict=True)]
        found.append([*f(*drawn)])
    sd = torch.tensor(found, dtype=torch.float64).std(dim=0) * (part / (1 - part)) ** 0.5
    return (1.96 * sd).tolist(), sizes


def affordable(dim: int) -> int:
    """Draws of a bootstrap whose every value costs a decomposition in `dim` dimensions."""
    return 200 if dim <= 256 else 50 if dim <= 1024 else 10
