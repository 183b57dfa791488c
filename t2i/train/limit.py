"""`train.max_minutes`: a run ends so early that what it does at its end fits, and a decay that does not fit follows."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from t2i.train.forecast import Forecast
from t2i.train.optim import OptimConfig, progress
from t2i.train.settings import TrainConfig

log = logging.getLogger(__name__)

SPEED = 1e8
"""Bytes of state saved a second, until a save was measured."""
_SURE = (5, 0.05)  # steps, and part of the time, after which it is told whether the steps fit


def num_bytes(model: nn.Module, config: TrainConfig) -> int:
    """What a save writes: weights, two moments and the averages."""
    return 4 * (3 + len(config.ema)) * sum(p.numel() for p in model.parameters())


class TimeLimit:
    """What the parts of one call of a run cost, and what fits into `max_minutes` of it.

    Args:
        size: bytes that a save writes.
        seconds: that a save, a grid and an evaluation took before the run was resumed.
        forecast: measures everything.
        began: when the time began, by `time.perf_counter`.
        world: processes; several look at the clock every fifth step.
    """

    def __init__(
        self, config: TrainConfig, optim: OptimConfig, size: int, seconds: dict[str, float], forecast: Forecast,
        began: float, world: int = 1,
    ) -> None:  # fmt: skip
        self.config, self.optim, self.forecast, self.together = config, optim, forecast, 1 if world == 1 else 5
        self.guess, self.began, self.beside = {"save": size / SPEED}, began, 0.0
        self.seconds = {what: took for what, took in seconds.items() if took}  # earlier versions: 0 for not yet
        self.limit = 60 * (config.max_minutes or float("inf"))
        self.first: tuple[int, float, float] | None = None  # step, time, time beside, after the first and slow step
        self.follows: tuple[float, float] | None = None  # progress and seconds when the decay began to follow the time

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Measure a `save`, a `grid`, an `evaluation` or a `judgement`."""
        with self.forecast.measured(what):
            yield
        self.seconds[what] = self.forecast.took[what][-1]
        self.beside += self.seconds[what]

    def prepare(self, evaluate: Callable[[], object], judge: Callable[[], object] | None = None) -> None:
        """Evaluate once where there is a limit and nobody knows what it takes: the first may be the one at the end."""
        if self.config.max_minutes is None:
            return
        if self.config.val_every > 0 and "evaluation" not in self.seconds:
            with self.timing("evaluation"):
                evaluate()
        if judge is not None and "judgement" not in self.seconds:
            with self.timing("judgement"):
                judge()

    def _cost(self, *whats: str) -> float:
        return sum(self.seconds.get(what, self.guess.get(what, 0.0)) for what in whats)

    def late(self, step: int, sample: bool, measure: bool, judge: bool = False) -> bool:
        """Whether to end after this step: one more, with what is due now and what comes at the end, is too much."""
        now = time.perf_counter()
        self.first = self.first or (step, now, self.beside)
        due = {"save": step % self.config.save_every == 0, "grid": sample, "evaluation": measure, "judgement": judge}
        cost = self._cost(*(what for what, is_due in due.items() if is_due))
        first, began, beside = self.first
        one = (now - began - (self.beside - beside)) / max(1, step - first)
        self._follow(step, now)
        return now - self.began + cost + self.together * one + self._ending > self.limit

    def ahead(self) -> float:
        """How far the decay is by the clock, between 0 and 1; 0 where the steps fit, or there is no limit."""
        if self.follows is None:
            return 0.0
        start, since = self.follows
        return min(1.0, start + (1 - start) * (time.perf_counter() - since) / max(1e-9, self._end - since))

    @property
    def _ending(self) -> float:
        looks = {"save": True, "grid": self.config.sample_every != 0, "evaluation": self.config.val_every > 0}
        looks["judgement"] = self.config.eval is not None
        return self._cost(*(what for what, is_on in looks.items() if is_on))

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
