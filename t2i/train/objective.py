"""The loss of a task as a module, and the batches it is given."""

from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from t2i.core.types import Batch


class Batches(Protocol):
    """Endless batches that know how long they were waited for."""

    seconds_waited: float

    def __iter__(self) -> Generator[Batch, None, None]: ...


class LoaderFactory(Protocol):
    """Makes the loader of one process; `functools.partial(Loader, data_config)` is one."""

    def __call__(
        self,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        start: int,
        split: str,
        bad_log: Path | None,
    ) -> Batches: ...


class Objective(nn.Module):
    """Puts the loss inside `forward`, where DistributedDataParallel sees it, and under autocast."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Batch], dict[str, Tensor]], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = loss  # of a task whose other modules are hidden here: they are neither trained nor synchronised
        self.dtype, self.device_type = dtype, device.type

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(mean loss with gradient, {name: detached mean})."""
        with self.autocast():
            losses = self._loss(batch)
        means = {name: value.float().mean() for name, value in losses.items()}
        return means["loss"], {name: value.detach() for name, value in means.items()}

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """bfloat16 where it was chosen."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors of a batch on a device, pictures in channels_last layout; everything else as it is."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(device, non_blocking=True)
        return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value

    return {key: move(value) for key, value in batch.items()}
