"""Looking at a run: sample grids and held-out numbers, both of the averaged weights, on the same samples each time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import mix
from t2i.core.types import Batch, Task
from t2i.io.images import to_pil
from t2i.train.ema import Ema
from t2i.train.grids import Section, legend, save_sheet
from t2i.train.log import Meter
from t2i.train.objective import Objective, to_device

_WRITTEN = 24
"""Lines beneath a picture of what a model writes of it."""


def check_prompts(task: Task, prompts: Sequence[str]) -> None:
    """UsageError for prompts that a task cannot draw."""
    if prompts and not task.takes_prompts:
        raise UsageError(f"train.prompts: this {type(task.model).__name__} draws nothing from sentences; leave it out")


class HeldOut:
    """What a run is judged by.

    Args:
        one: gives the batch that grids are drawn from, and whether it is held out; called once, when first needed.
        many: gives this process's held-out batches; called once, when first needed.
        prompts: further sentences that grids show.

    Raises UsageError for prompts that the task cannot draw.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        ema: Ema,
        device: torch.device,
        one: Callable[[], tuple[Batch, bool]],
        many: Callable[[], list[Batch]],
        prompts: Sequence[str] = (),
    ) -> None:
        self.task, self.objective, self.ema, self.device, self.prompts = task, objective, ema, device, prompts
        self._one, self._many = one, many
        self._batch: tuple[Batch, bool] | None = None
        self._batches: list[Batch] | None = None
        check_prompts(task, prompts)

    @property
    def draws(self) -> bool:
        """Whether the task has grids."""
        return type(self.task).sample is not Task.sample

    def problem(self) -> str | None:
        """Why there is nothing to look at, if there is not."""
        try:
            self._batch = self._batch or self._one()
        except (DataError, UsageError) as error:
            return str(error)
        return None

    def sample(self, path: Path, title: str) -> None:
        """Draw the grid of the first held-out samples, and of `prompts`, if the task draws any."""
        if sections := self.draw(title):
            save_sheet(sections, path)

    def draw(self, title: str) -> list[Section]:
        """What `sample` saves; nothing if the task draws nothing."""
        self._batch = self._batch or self._one()
        (first, is_held_out), asked = self._batch, None
        batch = to_device(first, self.device)
        with self._averaged():
            pictures, written = self.task.sample(batch), self.task.sample_captions(batch)
            if self.prompts:
                seeds = [mix("prompt", number) for number in range(len(self.prompts))]
                asked = self.task.draw_prompts({**batch, "caption": list(self.prompts), "seed": seeds})
        if pictures is None:
            return []
        names = self.task.groups
        rows = list(zip(*(to_pil(group.float()) for group in pictures.chunk(len(names))), strict=True))
        known = legend(names) if is_held_out else legend(names).replace("held-out picture", "picture trained on")
        if written is None:
            sections = [Section(f"{title} · {known}", rows, said_of(self.task, batch))]
        else:
            sections = [Section(f"{title} · {known}", rows, written, lines=_WRITTEN)]
        if asked is not None:
            own = [[picture] for picture in to_pil(asked.float())]
            sections.append(Section(f"train.prompts: {names[-1]}", own, self.prompts))
        return sections

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the task draws of a batch, and the pictures themselves, both (B, 3, H, W) in [-1, 1]."""
        with self._averaged():
            pictures = self.task.sample(to_device(batch, self.device))
        assert pictures is not None
        groups = pictures.float().chunk(len(self.task.groups))
        return groups[-1], groups[0]

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


def said_of(task: Task, batch: Batch) -> list[str]:
    """What the network is told of each picture: its caption, or its class; nothing if it is told neither."""
    if "caption" in task.keys:
        return list(batch["caption"])
    if "label" not in task.keys:
        return []
    config = task.model.config
    ports = getattr(config, "ports", None)
    names = (
        ports.classes.names if ports is not None and ports.classes is not None else getattr(config, "class_names", ())
    )
    return [names[label] if names else f"class {label}" for label in batch["label"].tolist()]
