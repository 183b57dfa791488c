"""Exponential moving averages of weights and buffers, on the device, in float32, one fused call per decay."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """One average per decay of a model's trainable parameters and saved floating buffers.

    Buffers are averaged so that the running statistics of a BatchNorm are those of the averaged weights.
    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so short runs are averaged too.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self.decays = tuple(decays)
        saved = model.state_dict().keys()
        buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad} | buffers
        self.averages = [[x.detach().clone().float() for x in self.live.values()] for _ in self.decays]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after `num_updates` earlier updates."""
        live = [x.detach() if x.dtype == torch.float32 else x.detach().float() for x in self.live.values()]
        for decay, average in zip(self.decays, self.averages, strict=True):
            torch._foreach_lerp_(average, live, 1 - min(decay, (1 + num_updates) / (10 + num_updates)))

    def named(self, index: int = 0) -> dict[str, Tensor]:
        """The averages of one decay by name."""
        return dict(zip(self.live, self.averages[index], strict=True))

    @torch.no_grad()
    def load(self, index: int, values: dict[str, Tensor]) -> None:
        """Restore the averages of one decay; what `values` lack starts from the model, as it is now."""
        for name, average in self.named(index).items():
            average.copy_(values.get(name, self.live[name].detach()))

    @contextmanager
    def swapped(self, index: int = 0) -> Iterator[None]:
        """The model has the averaged weights inside this context; nothing is copied where both are float32."""
        if not self.decays:
            yield
            return
        live = [x.data for x in self.live.values()]
        try:
            for x, average in zip(self.live.values(), self.averages[index], strict=True):
                x.data = average.to(x.dtype)
            yield
        finally:
            for x, data in zip(self.live.values(), live, strict=True):
                x.data = data
