"""Bytes that Karlo's stages need while they draw, counted on fake tensors: nothing is computed, no GPU is needed."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t2i.core.types import TextFeatures
from t2i.nn.ports import Given
from t2i.stages.registry import stage


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed; those of `before` are not counted."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in before}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)):
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def features(num: int) -> TextFeatures:
    return TextFeatures(torch.randn(num, 768), torch.randn(num, 77, 768), torch.ones(num, 77, dtype=torch.bool))


def prior(model: Any) -> None:
    model(torch.randn(2, 768), torch.zeros(2), model.condition(features(2)))


def decoder(model: Any) -> None:
    condition = model.condition(Given(2, clip_image=torch.randn(2, 768), clip_text=features(2)))
    model(torch.randn(2, 3, 64, 64), torch.zeros(2), condition)


def upsampler(model: Any) -> None:
    model(torch.randn(1, 3, 256, 256), torch.zeros(1), model.condition(torch.randn(1, 3, 64, 64)))


def needed(kind: str, name: str, step: Callable[[nn.Module], None]) -> tuple[int, int]:
    """Bytes of a network in float32, and at most beside it in one guided step of one picture in float16."""
    spec = stage(kind)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = spec.model(spec.presets[name]).eval()
        weights = [*model.parameters(), *model.buffers()]
        with Alive(weights) as alive, torch.autocast("cpu", torch.float16, cache_enabled=False):
            step(model)
    return sum(x.numel() * x.element_size() for x in weights), alive.peak


def test_what_is_counted() -> None:
    kept = torch.zeros(100)
    with Alive([kept]) as alive:
        kept.view(10, 10)  # no bytes of its own
        a = kept + 1
        b = a + 1
        del a
        c = b + 1
        del b, c
    assert (alive.peak, alive.now) == (800, 0)


@pytest.mark.parametrize(
    ("kind", "name", "step", "at_least"),
    [
        ("prior", "karlo-diffusers-prior", prior, 4.0e9),
        ("decoder", "karlo", decoder, 3.5e9),
        ("upsampler", "karlo-256", upsampler, 5.5e9),
    ],
)
def test_a_stage_of_karlo_fits_a_gpu_of_8_gb(kind: str, name: str, step: Any, at_least: float) -> None:
    """With `offload`, only the stage that draws is there; 7 GB leave one for CUDA itself and its workspaces."""
    weights, beside = needed(kind, name, step)
    assert weights > at_least
    assert 1e7 < beside < 7e9 - weights
