"""Measures of what a run draws, against what is held out: `train.eval`.

B pictures of a batch · N in all
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from t2i.data.loader import NothingHeldOutError
from t2i.train.held_out import HeldOut
from t2i.train.loaders import Loaders
from t2i.train.parallel import Parallel
from t2i.train.settings import EvalConfig

log = logging.getLogger(__name__)

Pairs = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Numbers (B,) of pictures, what was drawn and what is held out, (B, 3, H, W) in [-1, 1]."""


class Judge(Protocol):
    """What measures pictures; see `t2i.measures.judge`."""

    def look(self, pairs: Pairs, num: int) -> Any:
        """What is kept of this process's share of N pictures; it can be sent to others."""

    def numbers(self, seen: Sequence[Any]) -> dict[str, Any]:
        """Numbers and what they depend on, by name, from what all processes have kept."""


class Evaluation:
    """Draws the same held-out samples each time, over all processes, and has them judged."""

    def __init__(
        self, config: EvalConfig, judge: Judge, held_out: HeldOut, loaders: Loaders, parallel: Parallel
    ) -> None:
        self.config, self.judge, self.held_out = config, judge, held_out
        self.loaders, self.parallel, self.told = loaders, parallel, False

    def measure(self) -> dict[str, Any]:
        """A row of numbers, the same for all processes; empty where nothing is held out. All must ask."""
        seen = self.parallel.gather(self._look())
        if any(one is None for one in seen):
            return {}
        numbers: dict[str, Any] = self.parallel.on_main(lambda: self.judge.numbers(seen))
        return numbers

    def _look(self) -> Any:
        random = torch.random.get_rng_state()
        try:
            return self.judge.look(self._pairs(), self.config.num)
        except NothingHeldOutError as error:
            self._tell(f"no measures of drawn pictures: {error}")
            return None
        finally:
            torch.random.set_rng_state(random)

    def _pairs(self) -> Pairs:
        """This process's share, up to the first picture that comes a second time."""
        world, rank, seen = self.parallel.world, self.parallel.rank, set[str]()
        share, done = len(range(rank, self.config.num, world)), 0
        with closing(iter(self.loaders.open("val", self.config.batch_size * world, accumulate=1))) as batches:
            while done < share:
                batch = next(batches)
                keys = batch.get("key", [str(seed) for seed in batch["seed"]])
                new = [i for i, key in enumerate(keys) if key not in seen and not seen.add(key)]  # type: ignore[func-returns-value]
                drawn, real = self.held_out.pairs(batch)
                some = new[: share - done]
                numbers = torch.arange(done, done + len(some)) * world + rank
                if some:
                    yield numbers, drawn[some], real[some]
                done += len(some)
                if len(new) < len(keys):
                    break
        if done < share:
            self._tell(f"train.eval.num={self.config.num}: only {done * world} pictures or so are held out")

    def _tell(self, what: str) -> None:
        if not self.told and self.parallel.main:
            log.warning("%s", what)
        self.told = True
