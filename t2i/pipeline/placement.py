"""Where the stages of a pipeline are, and in which precision they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from t2i.core.choices import DTYPES
from t2i.core.devices import device_of, dtype_of, memory_explained
from t2i.core.errors import UsageError, quoted

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline

P = TypeVar("P", bound="Pipeline")
LESS = "a smaller max_batch or max_tile, offload=True, or dtype='bfloat16'"


def home(pipe: "Pipeline", part: str) -> torch.device:
    """Where a part is while it does nothing; what guides is asked at every step and stays on the device."""
    guides = [slot.name for slot in pipe.slots if slot.role == "guides"]
    return torch.device("cpu") if pipe.offload and part not in guides else pipe.device


def move(
    pipe: P,
    device: str | torch.device | torch.dtype | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    offload: bool | None = None,
) -> P:
    """Move every stage: `to("cuda")`, `to(torch.float16)`, `to("cpu", "bfloat16")`; "auto" as in `from_pretrained`, and
    what is not given stays as it is. With `offload`, a stage is on the device only while it draws, and CLIP while it
    reads: a GPU then needs room for the largest stage, not for all."""
    if dtype is None and (isinstance(device, torch.dtype) or device in DTYPES):
        device, dtype = None, cast("str | torch.dtype", device)
    if not isinstance(offload, bool | None):
        raise UsageError(f"offload must be True or False, got {quoted(offload)}")
    there = pipe.device if device is None else device_of(cast("str | torch.device", device))
    pipe.dtype = pipe.dtype if dtype is None else dtype_of(dtype)
    pipe.device, pipe.offload = there, pipe.offload if offload is None else offload
    for name, part in pipe.parts.items():
        part.to(home(pipe, name)).to(memory_format=torch.channels_last)
    return pipe


@contextmanager
def on_device(pipe: "Pipeline", part: str) -> Iterator[None]:
    """A part is on the device until the block ends."""
    pipe.parts[part].to(pipe.device)
    try:
        yield
    finally:
        pipe.parts[part].to(home(pipe, part))


@contextmanager
def stage_context(pipe: "Pipeline", stage: str, timings: dict[str, float]) -> Iterator[None]:
    """Device, precision and timing of one stage of a call."""
    start, precise = perf_counter(), pipe.dtype == torch.float32
    keep = not pipe.offload  # copies of the weights in half precision from step to step: half as much memory again
    autocast = torch.autocast(pipe.device.type, pipe.dtype, enabled=not precise, cache_enabled=keep)
    with on_device(pipe, stage), torch.no_grad(), autocast, memory_explained(f"stage {stage!r}", LESS):
        yield
    if pipe.device.type == "cuda":
        torch.cuda.synchronize(pipe.device)
    timings[stage] = timings.get(stage, 0.0) + perf_counter() - start
