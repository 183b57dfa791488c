"""Exponential moving averages of the weights, on the device, in float32, one fused call per decay."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """One average per decay of the trainable parameters of a model.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so short runs are averaged too.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self.decays = tuple(decays)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = [[p.detach().clone().float() for p in self.parameters.values()] for _ in self.decays]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after `num_updates` earlier updates."""
        live = [p.detach() if p.dtype == torch.float32 else p.detach().float() for p in self.parameters.values()]
        for decay, average in zip(self.decays, self.averages, strict=True):
            torch._foreach_lerp_(average, live, 1 - min(decay, (1 + num_updates) / (10 + num_updates)))

    def named(self, index: int = 0) -> dict[str, Tensor]:
        """The averages of one decay by parameter name."""
        return dict(zip(self.parameters, self.averages[index], strict=True))

    @torch.no_grad()
    def load(self, index: int, values: dict[str, Tensor]) -> None:
        """Restore the averages of one decay."""
        for name, average in self.named(index).items():
            average.copy_(values[name])

    @contextmanager
    def swapped(self, index: int = 0) -> Iterator[None]:
        """The model has the averaged weights inside this context; nothing is copied where both are float32."""
        if not self.decays:
            yield
            return
        live = [p.data for p in self.parameters.values()]
        try:
            for p, average in zip(self.parameters.values(), self.averages[index], strict=True):
                p.data = average.to(p.dtype)
            yield
        finally:
            for p, data in zip(self.parameters.values(), live, strict=True):
                p.data = data
