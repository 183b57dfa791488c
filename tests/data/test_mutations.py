"""Folders and tars of random contents: an error of t2i or a bad sample, never anything else, and all is counted."""

import io
import os
import random
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from files_of_data import picture

from t2i.core.errors import T2IError
from t2i.core.paths import IMAGE_TYPES
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.opening import open_source
from t2i.data.scan import passed_over, scan
from t2i.data.source import BadSample, Needs
from t2i.data.tars import index_tar

STEMS = [
    "a",
    "b",
    "a.b",
    "a b.c",
    "é",
    "e\u0301",
    ".x",
    "..",
    "a\n",
    "\x1b[2J",
    "@eaDir",
    "x" * 90,
    "a\udcff",
    "{0..9}",
    "*",
]
ENDS = [
    "",
    ".png",
    ".PNG",
    ".jpg",
    ".webp",
    ".tiff",
    ".txt",
    ".TXT",
    ".json",
    ".cls",
    ".npy",
    ".z.npy",
    ".key.npy",
    ".heic",
]


def contents(rng: random.Random) -> bytes:
    """A picture, a text or an array, whole or damaged, or anything."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(rng.randrange(3), np.float32))
    data = bytearray(
        rng.choice([picture(3), b"a red cube", b'{"caption": "x"}', b"7", buffer.getvalue(), b"", b"[" * 9999])
    )
    for _ in range(rng.choice([0, 0, 1, 5])):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice([None, None, rng.randrange(1 + len(data))])])


def name(rng: random.Random) -> str:
    return rng.choice(STEMS) + rng.choice(ENDS)


def tar(rng: random.Random, path: Path) -> int:
    """Write a tar; the number of its members that are no folders, or -1 for a damaged one."""
    members = 0
    with tarfile.open(path, "w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as out:
        for _ in range(rng.randrange(20)):
            info = tarfile.TarInfo(rng.choice(["", "./", "d/", "d.e/"]) + name(rng))
            info.type = rng.choice(
                [tarfile.REGTYPE] * 6 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
            )
            info.linkname = name(rng) if info.islnk() or info.issym() else ""
            data = contents(rng) if info.isreg() else b""
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
            members += not info.isdir()
    if rng.random() < 0.5:
        return members
    data = bytearray(path.read_bytes())
    for _ in range(20):
        data[rng.randrange(min(len(data), 512 * 40))] = rng.randrange(256)
    path.write_bytes(data[: rng.randrange(len(data))])
    return -1


def folder(rng: random.Random, root: Path) -> None:
    """Fill a folder with files, folders, links and pipes."""
    places = [root]
    for _ in range(rng.randrange(25)):
        path = rng.choice(places) / name(rng)
        kind = rng.choice(["file"] * 6 + ["folder", "folder", "link", "pipe", "tar"])
        if os.path.lexists(path) or path.name == "..":
            continue
        if kind == "file":
            path.write_bytes(contents(rng))
        elif kind == "folder":
            path.mkdir()
            places.append(path)
        elif kind == "link":
            path.symlink_to(rng.choice([*places, path, root / name(rng), root.parent, "/dev/zero"]))
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            tar(rng, path.with_name(path.name[:50] + ".tar"))


def draw_all(source: str) -> None:
    """Every sample, and a batch; errors of t2i are answers."""
    config, errors = DataConfig(source=source, size=8, num_workers=0, val_fraction=0), []
    for keys in (("image",), ("image", "caption"), ("image", "label", "z"), ("z",)):
        try:
            opened = open_source(source, config, "train", Needs(keys))
            assert opened is not None
            str(opened)
            for index in range(len(opened.keys)):
                with suppress(BadSample):
                    opened.load(index, Streams([0]))
            next(iter(Loader(config, seed=0, batch_size=3, needs=Needs(keys))))
        except T2IError as answer:
            errors.append(str(answer))
    assert all(len(error.splitlines()) == 1 for error in errors)


@pytest.mark.parametrize(("first", "count"), [(0, 15), pytest.param(100, 2000, marks=pytest.mark.slow)])
def test_folders_of_anything_are_answered_and_counted(tmp_path: Path, first: int, count: int) -> None:
    for seed in range(first, first + count):
        root = tmp_path / str(seed)
        root.mkdir()
        folder(random.Random(seed), root)
        found = scan(root)
        used = [*found.pictures, *found.tars, *{*found.captions.values()}]
        assert len(used) == len({*used})
        walked = [(at, name) for at, _, names in os.walk(root) for name in names]
        plain = {
            os.path.relpath(os.path.join(*each), root) for each in walked if not os.path.islink(os.path.join(*each))
        }
        plain = {path for path in plain if not any(map(passed_over, path.split("/")))}
        pictures = {path for path in plain if Path(path).suffix[1:].lower() in IMAGE_TYPES and (root / path).is_file()}
        assert pictures <= {*found.pictures}
        left = found.left_out.counts
        away = left["hidden or of the system"] + left["linked to nothing"] + left["linked and read already"]
        assert len(plain - {*used}) <= left.total() - away
        draw_all(str(root))


@pytest.mark.parametrize(("first", "count"), [(0, 25), pytest.param(100, 4000, marks=pytest.mark.slow)])
def test_tars_of_anything_are_answered_and_counted(tmp_path: Path, first: int, count: int) -> None:
    for seed in range(first, first + count):
        members = tar(random.Random(seed), path := tmp_path / f"{seed}.tar")
        samples, left_out = index_tar(str(path))
        if members >= 0:
            assert sum(map(len, samples.values())) + left_out.counts.total() == members
        draw_all(str(path))
