"""An endless loader in which the sample at position p is a pure function of (seed, p).

Step k of a run reads positions k·B … k·B+B-1, whatever the number of processes, workers or micro-batches, so two
processes with half the batch each see exactly the batch of one, and a resume needs one integer.
"""

import atexit
import collections
import json
import logging
import math
import os
import re
import signal
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from t2i.core.errors import DataError, UsageError, shown
from t2i.core.reading import clear_errors
from t2i.core.seed import Streams, mix
from t2i.core.types import Batch
from t2i.data.config import DataConfig
from t2i.data.framing import told
from t2i.data.opening import Subset, open_source
from t2i.data.order import Mixture, permute
from t2i.data.scenes import ShapesSource
from t2i.data.source import HEAD, BadSample, Needs, Sample, collate
from t2i.io.decode import noticed, once
from t2i.io.files import json_lines

log = logging.getLogger(__name__)

_LOOKED_AT = 200  # pictures of a source whose shape is told
_TRIES = 32
_KILLED = re.compile(r"DataLoader worker \(pid|Pin memory thread exited")  # as torch says it


@contextmanager
def loaders_explained(*broken: type[Exception]) -> Iterator[None]:
    """DataError where a process that loads pictures was killed, which torch raises wherever its parent is; and for what
    is `broken` where it was handing something over."""
    expected: tuple[type[Exception], ...] = (RuntimeError, *broken)
    try:
        yield
    except expected as error:
        if isinstance(error, RuntimeError) and not _KILLED.match(str(error)):
            raise
        raise DataError(
            "a process that loads pictures was killed, most often for want of memory (or of /dev/shm): "
            "fewer data.num_workers, or 0, need less"
        ) from error


class NothingHeldOutError(DataError):
    """No held-out sample: too few files, too small a `val_fraction`, or none of them usable."""


class Loader:
    """Endless batches of one process; closing them logs how many samples were unusable, by reason.

    Args:
        batch_size: samples per optimiser step over all processes and micro-batches.
        accumulate: micro-batches per optimiser step.
        rank, world: this process and the number of processes.
        start: position of the first sample of the first step.
        split: `train` or `val`; held-out shapes are scenes that training never draws.
        needs: what of every sample.
        bad_log: JSON lines file that names every unusable sample, once for each process.

    Raises:
        UsageError: a batch that does not divide evenly, or a source that is none; while iterating, samples without what
            is needed.
        NothingHeldOutError: the split is `val`, and training has every sample.
        DataError: no data, or while iterating, too many unusable samples.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        split: str = "train",
        bad_log: Path | None = None,
        needs: Needs = Needs(),
    ) -> None:
        if batch_size % (accumulate * world):
            raise UsageError(
                f"batch_size {batch_size} must be a multiple of {world} processes × accumulate {accumulate}"
            )
        if split not in ("train", "val"):
            raise UsageError(f"split must be train or val, got {split!r}")
        self.config, self.bad_log, self.world, self.split = config, bad_log, world, split
        self.batch_size, self.accumulate, self.rank, self.start = batch_size, accumulate, rank, start
        self.micro = batch_size // (accumulate * world)
        self.needs, self.data = needs, _Positions(config, seed, self.micro, split, needs)
        self.seconds_waited = 0.0
        self.bad: collections.Counter[str] = collections.Counter()
        self.num_seen = self.num_enlarged = 0
        earlier = json_lines(bad_log) if bad_log is not None and bad_log.exists() else []
        self.listed = {str(row["key"]) for row in earlier if "key" in row}  # before the run was resumed

    def announce(self) -> None:
        """Say what is used of every source and, of some of its pictures, how many cannot be read or are not square."""
        policy = self.config.crop_policy
        for given, source in zip(self.config.sources, self.data.sources, strict=True):
            if isinstance(source, ShapesSource):
                continue
            log.info("%s: %s", given.src, source)
            if isinstance(source, Subset):
                log.info("%s: %d to train on, %d held out", given.src, len(source), len(source.source) - len(source))
            heads = []
            for index in range(0, len(source), math.ceil(len(source) / _LOOKED_AT)) if self.data.pictured else ():
                head = b""
                with suppress(BadSample):  # it has none
                    head = source.head(index)
                heads.append((source.keys[index], head))
            for line in told(heads, HEAD, policy if self.config.crop is None or policy == "pad" else None):
                log.info("%s: %s", given.src, line)

    @staticmethod
    def announced(make: "Callable[..., Loader]") -> "Callable[..., Loader]":
        """The same loaders, of which the first to train on, in the main process, is announced."""
        told: list[Loader] = []

        def opened(**how: Any) -> Loader:
            loader = make(**how)
            if loader.split == "train" and loader.rank == 0 and not told:
                told.append(loader)
                loader.announce()
            return loader

        return opened

    def __iter__(self) -> Generator[Batch, None, None]:
        """Micro-batches, b = batch_size/accumulate/world: `image` (b, 3, h, h) in [-1, 1], `caption`, `key`, `seed`."""
        stream = self._stream()
        _open_streams.add(stream)
        return stream

    def _stream(self) -> Generator[Batch, None, None]:
        workers = self.config.num_workers
        workers = min(2, os.cpu_count() or 1) if workers is None else workers
        batches = iter(
            DataLoader(
                self.data,
                sampler=self._starts(),  # type: ignore[arg-type]
                batch_size=None,
                num_workers=workers,
                worker_init_fn=_ignore_signals,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if workers else None,
            )
        )
        try:
            while True:
                before = time.perf_counter()
                with loaders_explained(*((ConnectionError, EOFError) if workers else ())):
                    batch = next(batches)
                self.seconds_waited += time.perf_counter() - before
                notices = batch.pop("notices")
                for notice in sorted(notices) if self.rank == 0 else ():
                    once(notice)
                self._account(batch.pop("bad"), batch.pop("enlarged"), batch.pop("failed"))
                if missing := [key for key in self.needs.keys if key not in batch]:  # maybe in one of several sources
                    raise UsageError(f"the task needs {missing}, the data has {sorted(batch)}")
                yield batch
        finally:
            _end(batches)
            if self.bad:
                log.warning("%s data: %d samples used, skipped %s", self.split, self.num_seen, self._reasons())
            if self.num_enlarged:
                log.warning("%s data: %d of %d pictures enlarged", self.split, self.num_enlarged, self.num_seen)

    def _starts(self) -> Iterator[int]:
        position = self.start + self.rank * self.micro
        while True:
            yield position
            position += self.micro * self.world

    def _account(self, bad: list[dict[str, str]], enlarged: list[str], failed: str | None) -> None:
        self.num_seen += self.micro
        if enlarged and not self.num_enlarged and self.split == "train":
            first, size = shown(enlarged[0], 60), self.config.size
            log.warning("picture %s is smaller than data.size=%d: enlarged, it is blurred", first, size)
        self.num_enlarged += len(enlarged)
        for sample in bad:
            self.bad[sample["reason"]] += 1
            count = self.bad[sample["reason"]]
            if count == 1 or count % 1000 == 0:
                key, detail = shown(sample["key"], 60), shown(sample["detail"], 300)
                log.warning("skipped sample %s: %s (%s), %d so far", key, sample["reason"], detail, count)
        new = {sample["key"]: sample for sample in bad if sample["key"] not in self.listed}
        if new and self.bad_log is not None:
            with clear_errors(self.bad_log), open(self.bad_log, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample) + "\n" for sample in new.values())
            self.listed |= new.keys()
        example = f", such as {shown(bad[-1]['key'], 60)}" if bad else ""
        if failed is not None:
            kind = DataError if self.split == "train" else NothingHeldOutError
            raise kind(failed + (f" ({self._reasons()}{example})" if self.bad else ""))
        limit = self.config.max_bad_fraction * max(self.num_seen + self.bad.total(), 200)
        if self.split == "train" and self.bad.total() > limit:  # held out are few, and these drawn again and again
            raise DataError(
                f"too many unusable samples: {self._reasons()}{example} "
                f"(beside {self.num_seen} good ones; data.max_bad_fraction={self.config.max_bad_fraction})"
            )

    def _reasons(self) -> str:
        return ", ".join(f"{reason}: {count}" for reason, count in self.bad.most_common())


class _Positions(Dataset[Batch]):
    """`positions[p]` is the micro-batch of positions p … p+micro-1."""

    def __init__(self, config: DataConfig, seed: int, micro: int, split: str, needs: Needs) -> None:
        self.num_classes, self.pictured = needs.num_classes, "image" in needs.keys
        self.config, self.seed, self.micro, self.split = config, seed, micro, split
        if config.flip and not self.pictured:
            raise UsageError("data.flip=true mirrors pictures, and none are read here: leave it out")
        opened = [(open_source(source.src, config, split, needs), source.weight) for source in config.sources]
        self.sources = [source for source, _ in opened if source is not None]
        if not self.sources:
            raise NothingHeldOutError(f"data.val_fraction {config.val_fraction} holds out no sample of {config.source}")
        self.mixture = Mixture([weight for source, weight in opened if source is not None], seed)

    def __getitem__(self, start: int) -> Batch:
        with noticed() as notices:
            return {**self._batch(start), "notices": notices}

    def _batch(self, start: int) -> Batch:
        bad: list[dict[str, str]] = []
        samples: list[Sample] = [{}] * self.micro
        scenes: dict[int, dict[int, int]] = {}  # source: {row: position}
        try:
            for row in range(self.micro):
                source, draw = self.mixture.at(start + row)
                if isinstance(self.sources[source], ShapesSource):
                    scenes.setdefault(source, {})[row] = start + row
                else:
                    samples[row] = self._load(source, draw, start + row, bad)
            for source, rows in scenes.items():
                shapes = self.sources[source]
                assert isinstance(shapes, ShapesSource)
                drawn = shapes.draw([mix(self.seed, "scene", position) for position in rows.values()])
                for row, sample in zip(rows, drawn, strict=True):
                    samples[row] = sample
            enlarged = [sample["key"] for sample in samples if sample.pop("enlarged", False)]
            batch = collate(samples)
        except BadSample as error:
            return {"bad": bad, "enlarged": [], "failed": str(error)}
        seeds = [mix(self.seed, self.split, start + row) for row in range(self.micro)]
        return {**batch, "seed": seeds, "bad": bad, "enlarged": enlarged, "failed": None}

    def _load(self, number: int, draw: int, position: int, bad: list[dict[str, str]]) -> Sample:
        """The sample of a draw; an unusable one is replaced by another that depends on nothing but the position."""
        source = self.sources[number]
        assert not isinstance(source, ShapesSource)
        epoch, index = divmod(draw, len(source))
        index = permute(index, len(source), mix(self.seed, number, epoch))
        for attempt in range(1, _TRIES + 1):
            try:
                sample = source.load(index, Streams([mix(self.seed, position)], "data"))
                label = sample.get("label", 0)
                if self.num_classes is not None and not 0 <= label < self.num_classes:
                    names = getattr(source, "classes", ())
                    named = f" ({names[label]})" if 0 <= label < len(names) else ""
                    raise BadSample("label out of range", f"{label}{named}, of {self.num_classes} classes")
                if self.config.flip and "latents" in sample:
                    raise BadSample("latents that data.flip=true would not mirror with their picture")
                if self.config.flip and self.split == "train" and mix(self.seed, position, "flip") % 2:
                    sample["image"] = sample["image"].flip(-1)
                return sample
            except BadSample as error:
                key = str(source.keys[index])
                bad.append({"key": key, "reason": error.reason, "detail": error.detail, "position": str(position)})
                index = mix(self.seed, position, attempt) % len(source)
        raise BadSample("unusable data", f"{_TRIES} samples in a row")


def _ignore_signals(_: int) -> None:
    """Signals are for the main process, which finishes its step and then ends its loaders."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


_open_streams: "weakref.WeakSet[Generator[Batch, None, None]]" = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Loader processes are deaf to SIGTERM, so they must be told to end."""
    for stream in list(_open_streams):
        stream.close()


def _end(batches: Any) -> None:
    """End loader processes; those that hang, deaf to SIGTERM, would be waited for at exit and are killed."""
    try:
        getattr(batches, "_shutdown_workers", lambda: None)()
    finally:
        for worker in getattr(batches, "_workers", ()):
            worker.kill()
