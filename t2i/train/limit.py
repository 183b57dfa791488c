"""`train.max_minutes`: a run ends so early that what it does at its end fits, and a decay that does not fit follows."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from t2i.train.forecast import Forecast
from t2i.train.optim import OptimConfig, progress
from t2i.train.settings import TrainConfig

log = logging.getLogger(__name__)

_SPEED = 1e8  # bytes of state saved a second, until a save was measured
_SURE = (5, 0.05)  # steps, and part of the time, after which it is told whether the steps fit


class TimeLimit:
    """What the parts of one call of a run cost, and what fits into `max_minutes` of it.

    Args:
        size: bytes that a save writes.
        seconds: that a save, a grid and an evaluation took before the run was resumed.
        together: steps between two looks at the clock.
        forecast: is told as well what everything took.
        clock: seconds that only grow.
    """

    def __init__(
        self, config: TrainConfig, optim: OptimConfig, size: int, seconds: dict[str, float], together: int = 1,
        forecast: Forecast | None = None, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.config, self.optim, self.together, self.forecast, self.clock = config, optim, together, forecast, clock
        guess = {"save": size / _SPEED, "grid": 0.0, "evaluation": 0.0}
        self.seconds = {what: seconds.get(what, value) for what, value in guess.items()}
        self.limit = 60 * (config.max_minutes or float("inf"))
        self.began, self.beside = clock(), 0.0
        self.first: tuple[int, float, float] | None = None  # step, time, time beside, after the first and slow step
        self.follows: tuple[float, float] | None = None  # progress and seconds when the decay began to follow the time

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measure a `save`, a `grid` or an `evaluation`."""
        before = self.clock()
        with self.forecast.measured(what) if self.forecast is not None else nullcontext():
            yield
        self.seconds[what] = self.clock() - before
        self.beside += self.seconds[what]

    def late(self, step: int, sample: bool, measure: bool) -> bool:
        """Whether to end after this step: one more, with what is due now and what comes at the end, is too much."""
        now = self.clock()
        self.first = self.first or (step, now, self.beside)
        due = {"save": step % self.config.save_every == 0, "grid": sample, "evaluation": measure}
        cost = sum(self.seconds[what] for what, is_due in due.items() if is_due)
        first, began, beside = self.first
        one = (now - began - (self.beside - beside)) / max(1, step - first)
        self._follow(step, now)
        return now - self.began + cost + self.together * one + self._ending > self.limit

    def ahead(self) -> float:
        """How far the decay is by the clock, between 0 and 1; 0 where the steps fit, or there is no limit."""
        if self.follows is None:
            return 0.0
        start, since = self.follows
        return min(1.0, start + (1 - start) * (self.clock() - since) / max(1e-9, self._end - since))

    @property
    def _ending(self) -> float:
        looks = {"grid": self.config.sample_every != 0, "evaluation": self.config.val_every > 0}
        return sum(seconds for what, seconds in self.seconds.items() if looks.get(what, True))

    @property
    def _end(self) -> float:
        return self.began + self.limit - self._ending

    def _follow(self, step: int, now: float) -> None:
        """Let the decay follow the time from here if the steps do not fit."""
        assert self.first is not None
        first, began, _ = self.first
        steps, part = _SURE
        sure = step - first >= steps and now - self.began >= part * self.limit
        if self.follows is not None or self.optim.schedule == "constant" or not sure:
            return
        at_end = step + int((self._end - now) * (step - first) / (now - began))
        if at_end < self.config.steps:
            self.follows = progress(self.optim, step, self.config.steps), now
            log.warning(
                "train.max_minutes=%g ends near step %d of %d: optim.schedule=%s follows the time instead",
                self.config.max_minutes, at_end, self.config.steps, self.optim.schedule,
            )  # fmt: skip
