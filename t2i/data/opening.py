"""Which source a path or name means, and which part of it belongs to a split."""

import os
from typing import Any

from t2i.core.errors import UsageError
from t2i.core.seed import Streams, mix
from t2i.data.config import DataConfig
from t2i.data.folder import FolderSource
from t2i.data.scan import scan
from t2i.data.scenes import ShapesSource
from t2i.data.shards import ShardSource
from t2i.data.source import Needs, Sample, Source


class Subset:
    """The part of a source whose keys hash into a split."""

    def __init__(self, source: Source, rows: list[int]) -> None:
        self.source, self.rows = source, rows
        self.keys = [source.keys[row] for row in rows]
        self.classes: tuple[str, ...] = getattr(source, "classes", ())

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return str(self.source)

    def head(self, index: int) -> bytes:
        return self.source.head(self.rows[index])

    def load(self, index: int, rng: Streams) -> Sample:
        return self.source.load(self.rows[index], rng)


def open_source(src: str, config: DataConfig, split: str, needs: Needs) -> Source | ShapesSource | None:
    """The part of a source that belongs to a split, of samples that have what a task `needs`; None where nothing of it
    is held out."""
    if src == "shapes":
        if needs.channels != 3:
            raise UsageError("data.source=shapes is in colour; a network of one channel learns from files")
        if config.recaptions is not None and len(config.sources) == 1:
            raise UsageError(f"data.recaptions={config.recaptions}: shapes are not files, and caption themselves")
        return ShapesSource(config, split, needs.keys)
    source = open_files(src, config, needs)
    held = [mix("val", key) / 2**63 < config.val_fraction for key in source.keys]
    if all(held) or not any(held):  # training comes first
        return source if split == "train" else None
    return Subset(source, [row for row, is_val in enumerate(held) if is_val == (split == "val")])


def open_files(src: str, config: DataConfig, needs: Needs) -> FolderSource | ShardSource:
    """All of a source on disk. A folder of pictures and tars is what it holds more of."""
    how = (config.size, config.crop, config.captions, needs.keys)
    more: Any = {"policy": config.crop_policy, "channels": needs.channels, "recaptions": config.recaptions}
    if not os.path.isdir(src):
        return ShardSource(src, *how, **more)
    found = scan(src)
    if len(found.tars) > len(found.pictures):
        for name in found.pictures:
            found.left_out.add("beside more tars", name)
        return ShardSource(src, *how, found.left_out, **more)
    for name in found.tars:
        found.left_out.add(".tar beside pictures", name)
    return FolderSource(src, *how, found, **more)


def class_names(config: DataConfig) -> tuple[str, ...]:
    """What labels stand for: the classes of the shapes world, or the folders that pictures lie in; empty where labels
    are numbers only, or there are none.

    Raises UsageError for sources whose labels mean different things, DataError as the sources do.
    """
    from t2i.data import shapes

    found: dict[tuple[str, ...], str] = {}
    for source in config.sources:
        opened = open_source(source.src, config.model_copy(update={"val_fraction": 0.0}), "train", Needs(("image",)))
        names = shapes.CLASSES if isinstance(opened, ShapesSource) else getattr(opened, "classes", ())
        found.setdefault(names, source.src)
    if len(found) > 1:
        (ours, first), (theirs, second), *_ = found.items()
        raise UsageError(f"sources have different classes: {first} {_few(ours)}, {second} {_few(theirs)}")
    return next(iter(found))


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{' …' if len(names) > 5 else ''})" if names else "none by name"
