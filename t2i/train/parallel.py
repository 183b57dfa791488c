"""The seam to accelerate and torch.distributed: the loop asks this and nothing else about other processes.

Today DistributedDataParallel stands behind it; whatever shards a model later answers the same questions.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from t2i.core.errors import T2IError, UsageError
from t2i.train import checkpoint

T = TypeVar("T")


class Parallel:
    """The processes of a run, of which this is one.

    Args:
        device: auto, cpu or cuda.

    Raises UsageError for a device that is not there.
    """

    def __init__(self, device: str) -> None:
        cpu = device == "cpu" or not torch.accelerator.is_available()  # said aloud, or launchers fall apart
        self._accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        if device == "cuda" and self.device.type != "cuda":
            raise UsageError("device: cuda, but torch finds no GPU")

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return bool(self._accelerator.is_main_process)

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are those of all processes after its backward pass."""
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes inside add up gradients of this process alone."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(wrapped)
        return context

    def clip(self, parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
        """The norm of all gradients, which are scaled down to `max_norm` where it is larger; waits for no device."""
        return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"), foreach=True)

    def state(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Whole weights and whole optimiser state by name, to be saved by the main process; all must call it."""
        return module.state_dict(), checkpoint.optimizer_state(module, optimizer)

    def load(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: tuple[dict[str, Tensor], dict[str, Tensor]],
        where: Any,
    ) -> None:
        """Put back what `state` gave; UsageError that names `where` it was from if it does not fit."""
        checkpoint.load_model(module, state[0], where)
        checkpoint.load_optimizer(module, optimizer, state[1])

    def reduce(self, values: Tensor, how: Literal["mean", "sum"]) -> Tensor:
        """Mean or sum over processes, elementwise."""
        reduced: Tensor = self._accelerator.reduce(values, how)
        return reduced

    def tracker(self, name: str, project: str, folder: Path, options: dict[str, Any]) -> Any:
        """A started tracker of accelerate by name, which keeps what it keeps on disk below a folder."""
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(project, str(folder), **options) if kind.requires_logging_directory else kind(project, **options)
        tracker.start()
        return tracker

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank; all must call it."""
        return list(gather_object([value])) if self.world > 1 else [value]

    def broadcast(self, value: Any) -> Any:
        """What the main process has."""
        return broadcast_object_list([value if self.main else None])[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What some work gives the main process, which alone does it; an error of ours is raised in all processes."""
        done: tuple[Any, T2IError | None] = (None, None)
        if self.main:
            try:
                done = (work(), None)
            except T2IError as error:
                done = (None, error)
        value, failure = self.broadcast(done)
        if failure is not None:
            raise failure
        result: T = value
        return result
