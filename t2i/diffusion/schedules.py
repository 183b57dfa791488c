"""Noise schedules, and which of their steps a sampler keeps.

T steps of the full process. A schedule is its betas, a float64 tensor (T,); beta_t is the variance of the noise that
step t adds (Ho et al. 2020, eq. 2).
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, repeat

import torch
from torch import Tensor

_FAST27 = "10,10,3,2,2"


def linear(num_steps: int) -> Tensor:
    """Betas from 1e-4 to 0.02 for 1000 steps (Ho et al. 2020, section 4), scaled by 1000/T otherwise.

    Raises ValueError below 21 steps, where the last beta would reach 1.
    """
    if num_steps < 21:
        raise ValueError(f"the linear schedule needs at least 21 steps, got {num_steps}: its last beta would reach 1")
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)


def squared_cosine(num_steps: int) -> Tensor:
    """Betas whose alpha_bar follows a squared cosine (Nichol & Dhariwal 2021, eq. 17); the last is capped at 0.999."""
    if num_steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {num_steps}")

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / num_steps) / f(i / num_steps), 0.999) for i in range(num_steps)]
    return torch.tensor(betas, dtype=torch.float64)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear, "cosine": squared_cosine}


def respaced_steps(spec: str | int | Sequence[int], num_steps: int) -> list[int]:
    """Which of `num_steps` steps to keep, in increasing order.

    Args:
        spec: one of
            27 or "27": that many, evenly spread from the first to the last, halves rounded to even; 1 keeps the last.
            "10,10,3,2,2": as many equal sections of the process, each with its own number of steps.
            "ddim50": the smallest whole stride from 0 that keeps exactly 50 steps (Song et al. 2020).
            "fast27": GLIDE's 27 steps: five sections, and the third last step instead of the last.
            a list of steps.

    Raises ValueError, naming the spec and what is possible, if the process has no such steps.
    """
    if isinstance(spec, int):
        spec = str(spec)
    if not isinstance(spec, str):
        return _listed(spec, num_steps)
    if spec.startswith("ddim"):
        return _strided(spec, num_steps)
    if spec == "fast27":
        *kept, last = _sections(_FAST27, num_steps)
        return [*kept, last - 2]
    return [num_steps - 1] if spec.strip() == "1" else _sections(spec, num_steps)


def _listed(steps: Sequence[int], num_steps: int) -> list[int]:
    kept = sorted(set(steps))
    if not kept or kept[0] < 0 or kept[-1] >= num_steps:
        raise ValueError(f"steps must lie in 0…{num_steps - 1} and there must be one at least, got {list(steps)}")
    return kept


def _strided(spec: str, num_steps: int) -> list[int]:
    possible = {math.ceil(num_steps / stride): stride for stride in range(num_steps - 1, 0, -1)}
    if not spec[4:].isdecimal() or int(spec[4:]) not in possible:
        wanted = int(spec[4:]) if spec[4:].isdecimal() else 50
        nearest = sorted(sorted(possible, key=lambda n: abs(n - wanted))[:4])
        raise ValueError(
            f"{spec!r}: no whole stride keeps that many of {num_steps} steps; nearest that work: {nearest}"
        )
    return list(range(0, num_steps, possible[int(spec[4:])]))


def _sections(spec: str, num_steps: int) -> list[int]:
    parts = [p.strip() for p in spec.split(",")]
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(
            f"cannot read the steps {spec!r}: expected a positive number such as '27', sections such as '{_FAST27}', "
            "'ddim50' or 'fast27'"
        )
    kept: list[int] = []
    start = 0
    for i, count in enumerate(map(int, parts)):
        size = num_steps // len(parts) + (i < num_steps % len(parts))
        if count > size:
            raise ValueError(f"{spec!r} asks for {count} steps, but there are at most {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        positions = accumulate(repeat(stride, count - 1), initial=0.0)
        kept += [start + round(p) for p in positions]  # Python rounds halves to even, as the released samplers do
        start += size
    return kept
