"""Shards of scenes know their settings, continue where they broke off, and never mix."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from t2i.core.errors import DataError, UsageError
from t2i.data.shapes import write
from t2i.data.shapes.write import write_shards
from t2i.data.shards import ShardSource


def lengths(folder: Path) -> list[int]:
    return [len(ShardSource(str(path), 8)) for path in sorted(folder.glob("*.tar"))]


def test_more_scenes_continue_a_folder_and_redo_the_short_last_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, count=5, size=8, shard_size=3)
    first = (tmp_path / "00000.tar").stat().st_mtime_ns
    assert lengths(tmp_path) == [3, 2]
    write_shards(tmp_path, count=7, size=8, shard_size=3)
    assert lengths(tmp_path) == [3, 3, 1]
    write_shards(tmp_path, count=4, size=8, shard_size=3)
    assert lengths(tmp_path) == [3, 3, 1]
    assert (tmp_path / "00000.tar").stat().st_mtime_ns == first
    assert ShardSource(f"{tmp_path}/*.tar", 8).keys == [f"{seed:09d}" for seed in range(7)]


@pytest.mark.parametrize(
    "change", [{"size": 16}, {"size": 16, "crop": 8}, {"seed": 100}, {"shard_size": 4}], ids=lambda c: "-".join(c)
)
def test_shards_of_other_settings_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    settings = {"size": 8, "shard_size": 3}
    write_shards(tmp_path, count=2, **settings)
    before = (tmp_path / "00000.tar").read_bytes()
    found = r"00000.tar is of size 8, crop None, seed 0, shard_size 3, captions 4, not of size"
    with pytest.raises(UsageError, match=found):
        write_shards(tmp_path, count=2, **(settings | change))
    assert (tmp_path / "00000.tar").read_bytes() == before


def test_foreign_tars_are_not_added_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    os.mkfifo(tmp_path / "a-pipe.tar")  # is not waited for
    for name in ("a-pipe", "mine"):
        with pytest.raises(UsageError, match=rf"{name}.tar is of unknown settings"):
            write_shards(tmp_path, count=2, size=8)
        (tmp_path / f"{name}.tar").unlink()
    with pytest.raises(UsageError, match="at least 1, got 0"):
        write_shards(tmp_path / "none", count=0)


def test_a_full_disk_names_the_shard_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_add", full)
    with pytest.raises(DataError, match=r"no space left to write .*00000.tar"):
        write_shards(tmp_path, count=2, size=8)
    assert list(tmp_path.iterdir()) == []
