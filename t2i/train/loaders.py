"""The batches of a run: those to train on, and those to look at."""

import itertools
import logging
from contextlib import AbstractContextManager

import torch

from t2i.core.types import Batch
from t2i.data.loader import NothingHeldOutError
from t2i.train.objective import Batches, LoaderFactory
from t2i.train.parallel import Parallel
from t2i.train.settings import TrainConfig
from t2i.train.stop import StopRequest

log = logging.getLogger(__name__)


class Loaders:
    """Opens loaders for this process, and waits for what they give."""

    def __init__(self, make: LoaderFactory, config: TrainConfig, parallel: Parallel, stop: StopRequest) -> None:
        self.make, self.config, self.parallel, self.stop = make, config, parallel, stop

    def open(self, split: str, batch_size: int, **changes: int) -> Batches:
        """Batches of a split for this process, from position `start`."""
        config, parallel = self.config, self.parallel
        here = {"rank": parallel.rank, "world": parallel.world, "accumulate": config.accumulate, "start": 0} | changes
        bad_log = config.out / "bad.jsonl"
        return self.make(seed=config.seed, batch_size=batch_size, split=split, bad_log=bad_log, **here)

    def waiting(self) -> AbstractContextManager[None]:
        """Where a signal interrupts at once; several processes end between the same two steps, if data still come."""
        return self.stop.waiting() if self.parallel.world == 1 else self.stop.patiently()

    def one(self) -> tuple[Batch, bool]:
        """What grids show: held-out samples and True, or where there are none, others and False."""
        alone = {"rank": 0, "world": 1, "accumulate": 1}
        with self.waiting():
            try:
                return next(iter(self.open("val", self.config.num_samples, **alone))), True
            except NothingHeldOutError:
                return next(iter(self.open("train", self.config.num_samples, **alone))), False

    def held_out(self) -> list[Batch]:
        """What is measured; nothing where a process has nothing held out. All processes must ask."""
        count, found = self.config.val_batches * self.config.accumulate, list[Batch]()
        try:
            with self.waiting():
                found = list(itertools.islice(self.open("val", self.config.batch_size), count))
        except NothingHeldOutError as error:
            log.warning("no held-out numbers: %s", error)
        have = self.parallel.reduce(torch.tensor(float(bool(found)), device=self.parallel.device), "sum")
        return found if have == self.parallel.world else []
