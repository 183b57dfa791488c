"""An endless loader in which the sample at position p is a pure function of (seed, p).

Step k of a run reads positions k·B … k·B+B-1, whatever the number of processes, workers or micro-batches, so two
processes with half the batch each see exactly the batch of one, and a resume needs one integer.
"""

import atexit
import collections
import json
import logging
import os
import signal
import time
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset

from t2i.core.config import AtHome, Config
from t2i.core.errors import DataError, UsageError, did_you_mean
from t2i.core.seed import Streams, mix
from t2i.core.types import Batch
from t2i.data.folder import FolderSource
from t2i.data.order import Mixture, permute
from t2i.data.shapes.layout import check_num_things
from t2i.data.shards import ShardSource
from t2i.data.source import BadSample, Sample, Source, collate
from t2i.io.files import clear_errors, json_lines

log = logging.getLogger(__name__)

_TRIES = 32
VAL_SCENES = 1 << 62
"""The bit of a scene's seed that is set in held-out scenes and in no other."""


class SourceConfig(Config):
    """One source of a mixture."""

    src: Annotated[str, AtHome] = Field(description="shapes, a folder, or tar shards (path, glob or braces)")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other sources")


class DataConfig(Config):
    """What to train on."""

    source: Annotated[str, AtHome] | Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = Field(
        "shapes", description="one source, or several with weights"
    )
    size: int = Field(64, ge=4, description="pixels of the short side")
    crop: int | None = Field(None, ge=4, description="random window of the picture, pixels; None for its centre square")
    captions: dict[str, float] = Field(
        {}, description="weights of caption kinds; empty for those of `pick_caption`, also where none of these is there"
    )
    num_things: dict[int, float] = Field(
        {}, description="for shapes, weights of scenes with 1 to 4 things; empty for half with one, a third with two"
    )
    flip: bool = Field(
        False, description="mirror every second picture of training; not for captions with left and right"
    )
    num_workers: int | None = Field(None, ge=0, description="processes that load; None for min(2, cores)")
    val_fraction: float = Field(0.02, ge=0, lt=1, description="share of files held out, by hash of their key")
    max_bad_fraction: float = Field(0.2, ge=0, le=1, description="stop when more samples than this are unusable")

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.crop is not None and self.crop > self.size:
            raise ValueError(f"crop {self.crop} must not exceed size {self.size}")
        if any(w < 0 for w in self.captions.values()) or (self.captions and not sum(self.captions.values())):
            raise ValueError(f"caption weights must be positive, got {self.captions}")
        if self.num_things:
            check_num_things(self.num_things)
        return self

    @property
    def side(self) -> int:
        """Pixels of a side of what is trained on."""
        return self.size if self.crop is None else self.crop

    @property
    def side_key(self) -> str:
        """The key that says so."""
        return "data.size" if self.crop is None else "data.crop"

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, also where `source` is one string."""
        return (SourceConfig(src=self.source, weight=1.0),) if isinstance(self.source, str) else self.source


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
        captioned: whether a picture without a caption is of no use; if not, its caption is empty.
        num_classes: samples with other labels than 0 … num_classes-1 are of no use.
        bad_log: JSON lines file that names every unusable sample, once for each process.

    Raises:
        UsageError: a batch that does not divide evenly, or a source that is none.
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
        captioned: bool = True,
        num_classes: int | None = None,
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
        self.data = _Positions(config, seed, self.micro, split, captioned, num_classes)
        self.seconds_waited = 0.0
        self.bad: collections.Counter[str] = collections.Counter()
        self.num_seen = self.num_enlarged = 0
        earlier = json_lines(bad_log) if bad_log is not None and bad_log.exists() else []
        self.listed = {str(row["key"]) for row in earlier if "key" in row}  # before the run was resumed

    def __iter__(self) -> Generator[Batch, None, None]:
        """Micro-batches, b = batch_size/accumulate/world: `image` (b, 3, h, h) in [-1, 1], `caption`, `key`, `seed`."""
        stream = self._stream()
        atexit.register(_close, weakref.ref(stream))  # loader processes ignore SIGTERM, so they must be told to end
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
                batch = next(batches)
                self.seconds_waited += time.perf_counter() - before
                self._account(batch.pop("bad"), batch.pop("enlarged"), batch.pop("failed"))
                yield batch
        finally:
            getattr(batches, "_shutdown_workers", lambda: None)()
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
            log.warning(
                "picture %s is smaller than data.size=%d: enlarged, it is blurred", enlarged[0], self.config.size
            )
        self.num_enlarged += len(enlarged)
        for sample in bad:
            self.bad[sample["reason"]] += 1
            count = self.bad[sample["reason"]]
            if count == 1 or count % 1000 == 0:
                log.warning(
                    "skipped sample %s: %s (%s), %d so far", sample["key"], sample["reason"], sample["detail"], count
                )
        new = {sample["key"]: sample for sample in bad if sample["key"] not in self.listed}
        if new and self.bad_log is not None:
            with clear_errors(self.bad_log), open(self.bad_log, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(sample) + "\n" for sample in new.values())
            self.listed |= new.keys()
        example = f", such as {bad[-1]['key']}" if bad else ""
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

    def __init__(
        self, config: DataConfig, seed: int, micro: int, split: str, captioned: bool, num_classes: int | None
    ) -> None:
        self.num_classes = num_classes
        self.config, self.seed, self.micro, self.split = config, seed, micro, split
        opened = [(_open(source.src, config, split, captioned), source.weight) for source in config.sources]
        self.sources = [source for source, _ in opened if source is not None]
        if not self.sources:
            raise NothingHeldOutError(f"data.val_fraction {config.val_fraction} holds out no sample of {config.source}")
        self.mixture = Mixture([weight for source, weight in opened if source is not None], seed)

    def __getitem__(self, start: int) -> Batch:
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
                    raise BadSample("label out of range", f"{label}, of {self.num_classes} classes")
                if self.config.flip and self.split == "train" and mix(self.seed, position, "flip") % 2:
                    sample["image"] = sample["image"].flip(-1)
                return sample
            except BadSample as error:
                key = str(source.keys[index])
                bad.append({"key": key, "reason": error.reason, "detail": error.detail, "position": str(position)})
                index = mix(self.seed, position, attempt) % len(source)
        raise BadSample("unusable data", f"{_TRIES} samples in a row")


class ShapesSource:
    """Scenes of the procedural world, drawn on demand; see `t2i.data.shapes`.

    Raises UsageError for caption kinds and crops that the world does not have.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        from t2i.data import shapes

        self.config, self.split = config, split
        for kind in config.captions:
            if kind not in shapes.KINDS:
                hint = did_you_mean(kind, shapes.KINDS)
                raise UsageError(
                    f"data.captions: shapes have no kind {kind!r}; kinds are {', '.join(shapes.KINDS)}{hint}"
                )
        if config.flip:
            raise UsageError("data.flip=true: shapes are not mirrored, their captions say what is left and right")
        if config.crop not in (None, config.size) and (config.crop % 4 or config.size % 4):
            raise UsageError(f"data.crop={config.crop} and data.size={config.size} must be multiples of 4 for shapes")

    def draw(self, seeds: list[int]) -> list[Sample]:
        """One sample per 63-bit seed; training and validation seeds never meet."""
        from t2i.data import shapes

        config, weights = self.config, self.config.captions or shapes.WEIGHTS
        counts = config.num_things or shapes.NUM_THINGS
        seeds = [seed | VAL_SCENES if self.split == "val" else seed & ~VAL_SCENES for seed in seeds]
        crop = None if config.crop == config.size else config.crop
        drawn = shapes.draw(seeds, config.size, crop, weights=weights, num_things=counts)
        names = ("image", "caption", "key", "scene", "label")
        return [{name: drawn[name][i] for name in names} for i in range(len(seeds))]


def class_names(config: DataConfig) -> tuple[str, ...]:
    """What labels stand for: the classes of the shapes world, or the folders that pictures lie in; empty where labels
    are numbers only, or there are none.

    Raises UsageError for sources whose labels mean different things, DataError as the sources do.
    """
    from t2i.data import shapes

    found: set[tuple[str, ...]] = set()
    for source in config.sources:
        opened = _open(source.src, config.model_copy(update={"val_fraction": 0.0}), "train", captioned=False)
        found.add(shapes.CLASSES if isinstance(opened, ShapesSource) else getattr(opened, "classes", ()))
    if len(found) > 1:
        raise UsageError(f"the sources of {config.source} have different classes")
    return found.pop()


class _Subset:
    """The part of a source whose keys hash into a split."""

    def __init__(self, source: Source, rows: list[int]) -> None:
        self.source, self.rows = source, rows
        self.keys = [source.keys[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int, rng: Streams) -> Sample:
        return self.source.load(self.rows[index], rng)


def _open(src: str, config: DataConfig, split: str, captioned: bool) -> Source | ShapesSource | None:
    """The part of a source that belongs to a split; None where nothing of it is held out."""
    if src == "shapes":
        return ShapesSource(config, split)
    if os.path.isdir(src) and not any(name.endswith(".tar") for name in os.listdir(src)):
        source: Source = FolderSource(src, config.size, config.crop, config.captions, captioned)
    else:
        source = ShardSource(src, config.size, config.crop, config.captions, captioned)
    if split == "train":
        log.info("%s: %d samples from %s", src, len(source), type(source).__name__)
    held = [mix("val", key) / 2**63 < config.val_fraction for key in source.keys]
    if all(held) or not any(held):  # training comes first
        return source if split == "train" else None
    return _Subset(source, [row for row, is_val in enumerate(held) if is_val == (split == "val")])


def _ignore_signals(_: int) -> None:
    """Signals are for the main process, which finishes its step and then ends its loaders."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _close(stream: "weakref.ref[Generator[Batch, None, None]]") -> None:
    if (open_stream := stream()) is not None:
        open_stream.close()
