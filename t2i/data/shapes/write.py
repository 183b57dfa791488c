"""Scenes as ordinary webdataset shards, so that the default model trains through the same loader as a user's data."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t2i.core import progress
from t2i.core.errors import UsageError
from t2i.data import writing
from t2i.data.shapes import NUM_THINGS, draw
from t2i.data.shapes.captions import VERSION
from t2i.data.shapes.layout import check_num_things
from t2i.io.files import output_folder
from t2i.io.images import to_pil
from t2i.io.lock import sole_writer


def write_shards(
    out: str | Path,
    *,
    count: int,
    size: int = 64,
    crop: int | None = None,
    seed: int = 0,
    shard_size: int = 1000,
    num_things: Mapping[int, float] = NUM_THINGS,
) -> list[Path]:
    """Render scenes `seed … seed+count-1` into `out/00000.tar`, `00001.tar` …, with a progress bar.

    Each sample is `KEY.png`, `KEY.txt` (one caption, of a random kind) and `KEY.json` (`captions` of every kind and the
    `scene` itself). A shard appears whole or not at all and knows its settings; one of the same settings that is there
    already is kept unless it is too short, so a broken-off command continues and a larger `count` adds to it.

    Args:
        size: side of the whole picture in pixels.
        crop: write a random window of this side instead, as upsamplers train on.
        num_things: how often a scene has one, two, three or four things.

    Returns the paths. Raises UsageError for a crop that does not fit, a folder that cannot be written and shards of
    other settings in it, DataError for a full disk.
    """
    if crop is not None and (crop > size or crop % 4 or size % 4):
        raise UsageError(f"crop {crop} must fit into size {size}, and both be multiples of 4")
    if count < 1 or shard_size < 1:
        raise UsageError(f"count and shard_size must be at least 1, got {count} and {shard_size}")
    check_num_things(num_things)
    settings = f"size {size}, crop {crop}, seed {seed}, shard_size {shard_size}, captions {VERSION}"
    if num_things != NUM_THINGS:
        settings += f", num_things {dict(sorted(num_things.items()))}"
    drawn, at_once = partial(draw, size=size, crop=crop, num_things=num_things), _at_once(crop or size)
    paths = [Path(out) / f"{index:05d}.tar" for index in range(-(-count // shard_size))]
    with output_folder(out) as folder, sole_writer(folder):
        lengths = writing.lengths(folder, settings)
        with progress.bar(count, unit="img", desc=str(folder)) as bar:
            for index, path in enumerate(paths):
                seeds = range(seed + index * shard_size, seed + min(count, (index + 1) * shard_size))
                if lengths.get(path, 0) < len(seeds):
                    _write(path, settings, seeds, drawn, at_once, bar)
                else:
                    bar.update(len(seeds))
    return paths


def _at_once(side: int) -> int:
    """How many pictures are rendered together: 32, or fewer large ones."""
    return max(1, min(32, 2**22 // side**2))


def _write(
    path: Path, settings: str, seeds: range, drawn: Callable[[range], dict[str, Any]], at_once: int, bar: tqdm
) -> None:
    """One shard, under its name only when it is whole."""
    with writing.shard(path, settings, len(seeds)) as tar:
        for first in range(0, len(seeds), at_once):
            few = seeds[first : first + at_once]
            _add(tar, drawn(few))
            bar.update(len(few))


def _add(tar: tarfile.TarFile, samples: dict[str, Any]) -> None:
    """Append the files of a few scenes."""
    for i, image in enumerate(to_pil(samples["image"])):
        png = io.BytesIO()
        image.save(png, "PNG")
        facts = {
            "captions": samples["captions"][i],
            "scene": json.loads(samples["scene"][i]),
            "seed": samples["seed"][i],
        }
        files = {
            "png": png.getvalue(),
            "txt": samples["caption"][i].encode(),
            "json": json.dumps(facts).encode(),
            "cls": str(samples["label"][i]).encode(),
        }
        writing.add(tar, samples["key"][i], files)
