"""How long a run will take: the time of its steps, grids, evaluations and saves so far, and how many are to come."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from t2i.core.progress import Alive, duration
from t2i.train.settings import TrainConfig, num_times

log = logging.getLogger(__name__)

_RECENT = 100  # of each kind that count
_DOING = {
    "grid": "drawing a grid", "evaluation": "measuring held-out pictures", "judgement": "measuring drawn pictures",
    "save": "saving",
}  # fmt: skip


class Forecast:
    """What is left of a run, in seconds.

    Args:
        speaks: whether this process tells what the first of each kind took.
        alive: hears what is being done.
    """

    def __init__(self, config: TrainConfig, speaks: bool, alive: Alive) -> None:
        self.config, self.speaks, self.alive = config, speaks, alive
        self.took: dict[str, deque[float]] = {}
        self.warm = False  # whether a second step has ended
        self.began, self.beside = time.perf_counter(), 0.0

    def start(self) -> None:
        """Steps begin here."""
        self.began, self.beside = time.perf_counter(), 0.0
        self.alive.did("training")

    def step(self) -> None:
        """A step has ended; what was measured since the last one is no part of it."""
        if not self.warm and "step" in self.took:
            self.took["step"].clear()  # the first is slower than those to come
            self.warm = True
        self._add("step", time.perf_counter() - self.began - self.beside)
        self.began, self.beside = time.perf_counter(), 0.0

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """The time of a `grid`, an `evaluation`, a `judgement` or a `save`."""
        before = time.perf_counter()
        self.alive.did(_DOING[what])
        yield
        seconds = time.perf_counter() - before
        self.beside += seconds
        self._add(what, seconds)
        self.alive.did("training")

    def _add(self, what: str, seconds: float) -> None:
        if what not in self.took:
            self.took[what] = deque(maxlen=_RECENT)
            if self.speaks:
                log.info("the first %s took %s", what, duration(seconds))
        self.took[what].append(seconds)

    def left(self, step: int, minutes: float) -> float:
        """Seconds to the end after `step` steps and so many minutes of this process: medians of what was measured."""
        c = self.config
        every = {"step": 1, "grid": c.sample_every, "evaluation": c.val_every, "save": c.save_every}
        every["judgement"] = c.eval.every if c.eval is not None else 0
        left = sum(num_times(step, c.steps, every[what]) * median(took) for what, took in self.took.items())
        return left if c.max_minutes is None else max(0.0, min(left, 60 * (c.max_minutes - minutes)))
