"""A source cut into the parts that get a file of captions each: a tar, a share of a folder, a thousand scenes."""

import logging
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from t2i.core.errors import DataError, UsageError, did_you_mean
from t2i.core.seed import mix
from t2i.data.caption.store import hash_of, names_of, num_parts, part_of
from t2i.data.config import DataConfig
from t2i.data.folder import FolderSource
from t2i.data.opening import open_files
from t2i.data.shards import ShardSource
from t2i.data.source import BadSample, Needs
from t2i.io.images import open_image, to_pil

log = logging.getLogger(__name__)

_SCENES = 1000  # of a part


class Raw(NamedTuple):
    """A picture before it is looked at: its bytes hashed, its own captions, one per line, and how it is opened."""

    hash: str
    alt: str | None
    open: Callable[[], Image.Image]


class Unit(NamedTuple):
    """A part of a source: `name` of its file below the folder of captions, without the end; `read(i)` gives the picture
    of `keys[i]`, or raises BadSample."""

    name: str
    keys: Sequence[str]
    read: Callable[[int], Raw]


def units_of(src: str, out: Path, *, count: int | None = None, size: int = 256) -> list[Unit]:
    """The parts of a folder, of shards, or of the shapes world, of which `count` scenes are rendered at `size`.

    Raises UsageError and DataError as the sources do.
    """
    if src == "shapes":
        if count is None:
            raise UsageError("shapes have no end: say how many scenes with --count")
        return [_scenes(first, min(first + _SCENES, count), size) for first in range(0, count, _SCENES)]
    if count is not None:
        raise UsageError(f"--count={count} is for shapes; of {src} every picture is captioned")
    if not os.path.exists(src) and not any(mark in src for mark in "*?[{"):
        raise DataError(f"{src} does not exist{did_you_mean(src, ['shapes'])}")
    source = open_files(src, DataConfig(), Needs(("image",)))
    log.info("%s: %s", src, source)
    parts = parts_of(source, out)
    return [Unit(name, [source.keys[row] for row in rows], _reader(source, rows)) for name, rows in parts.items()]


def parts_of(source: FolderSource | ShardSource, out: Path) -> dict[str, list[int]]:
    """Rows of a source by the name of the part that they belong to."""
    if isinstance(source, ShardSource):
        names, parts = names_of(source.tars), dict[str, list[int]]()
        for row, tar in enumerate(source.tar_of):
            parts.setdefault(names[tar], []).append(row)
        return parts
    num, parts = num_parts(out, len(source)), {}
    for row, key in enumerate(source.keys):
        parts.setdefault(part_of(key, num), []).append(row)
    return dict(sorted(parts.items()))


def alt_of(captions: dict[str, list[str]]) -> str | None:
    """The captions that a picture came with, one per line, though one may have had several; None for none."""
    own: Iterable[str] = captions.get("alt") or captions.get("text") or ()
    return "\n".join(line for line in (" ".join(caption.split()) for caption in own) if line) or None


def _reader(source: FolderSource | ShardSource, rows: Sequence[int]) -> Callable[[int], Raw]:
    def read(i: int) -> Raw:
        data, captions = source.raw(rows[i])

        def opened() -> Image.Image:
            try:
                return open_image(data)
            except DataError as error:
                raise BadSample("unreadable picture", str(error)) from None

        return Raw(hash_of(data), alt_of(captions), opened)

    return read


def _scenes(first: int, end: int, size: int) -> Unit:
    from t2i.data import shapes
    from t2i.data.shapes.captions import VERSION

    seeds = range(first, end)

    def read(i: int) -> Raw:
        mark = hash_of(f"shapes {VERSION}, size {size}, seed {seeds[i]}".encode())
        own = shapes.captions(shapes.scene_from_seed(seeds[i]), random.Random(mix(seeds[i], "captions")))
        return Raw(mark, own["alt"], lambda: to_pil(shapes.batch([seeds[i]], size)["image"])[0])

    return Unit(f"shapes-{first // _SCENES:05d}", [f"{seed:09d}" for seed in seeds], read)
