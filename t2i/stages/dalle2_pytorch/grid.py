"""The steps that DALLE2-pytorch's own DDIM takes, which no spacing of OpenAI's gives."""

import torch


def grid(who: str, steps: str | int, num_steps: int, first: int = 0) -> list[int]:
    """Times from data to noise, `first` of them included: evenly from there to `num_steps`, which is left out.

    Args:
        who: takes the steps, for errors.
        first: 0, or -1 where the last move ends before the first step of training.

    Raises ValueError for anything but a number of steps below `num_steps`.
    """
    if not isinstance(steps, int) and not steps.isdecimal():
        raise ValueError(f"this {who} takes a number of steps, got {steps!r}")
    if not 1 <= int(steps) < num_steps:
        raise ValueError(f"steps must lie in 1…{num_steps - 1}, got {steps}")
    more = 2 if first == 0 else 1
    times: list[int] = torch.linspace(float(first), num_steps, int(steps) + more)[:-1].int().tolist()
    return times
