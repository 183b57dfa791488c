"""Looking at a run: sample grids and held-out numbers, both of the averaged weights, on the same samples each time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from t2i.core.types import Batch, Task
from t2i.io.images import grid, save_png
from t2i.train.ema import Ema
from t2i.train.log import Meter
from t2i.train.objective import Objective, to_device


class HeldOut:
    """What a run is judged by.

    Args:
        one: gives the batch that grids are drawn from; called once, when first needed.
        many: gives this process's held-out batches; called once, when first needed.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        ema: Ema,
        device: torch.device,
        one: Callable[[], Batch],
        many: Callable[[], list[Batch]],
    ) -> None:
        self.task, self.objective, self.ema, self.device = task, objective, ema, device
        self._one, self._many = one, many
        self._batch: Batch | None = None
        self._batches: list[Batch] | None = None

    @property
    def draws(self) -> bool:
        """Whether the task has grids."""
        return type(self.task).sample is not Task.sample

    def sample(self, path: Path) -> None:
        """Draw the grid of the first held-out samples, if the task draws any."""
        self._batch = self._batch or self._one()
        with self._averaged():
            pictures = self.task.sample(to_device(self._batch, self.device))
        if pictures is not None:
            save_png(grid(pictures.float()), path)

    def measure(self) -> tuple[list[str], Tensor]:
        """Names and means, over this process, of losses and task metrics; neither if nothing is held out."""
        if self._batches is None:
            self._batches = self._many()
        meter = Meter()
        with self._averaged():
            for batch in self._batches:
                moved = to_device(batch, self.device)
                meter.add(self.objective(moved)[1])
                metrics = self.task.metrics(moved)
                meter.add({name: torch.tensor(value, device=self.device) for name, value in metrics.items()})
        return meter.means()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model as it would be exported."""
        self.objective.model.eval()
        try:
            with torch.no_grad(), self.ema.swapped(), self.objective.autocast():
                yield
        finally:
            self.objective.model.train()
