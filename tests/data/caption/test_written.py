"""Any training blends written captions with those that pictures came with, sample by sample, as its seed says."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_data import make_folder, make_shard, make_tar, picture

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams, mix
from t2i.data.caption.store import read_rows, write_rows
from t2i.data.caption.units import hash_of
from t2i.data.config import DataConfig
from t2i.data.encoded import FACTS
from t2i.data.folder import FolderSource
from t2i.data.loader import Loader
from t2i.data.opening import open_source
from t2i.data.shards import ShardSource
from t2i.data.source import Needs

BLEND = {"descriptive": 0.95, "alt": 0.05}


def write(path: Path, first: int, count: int, name: str = "{:04d}", **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        dict.fromkeys(("model", "revision", "settings", "error"))
        | {"key": name.format(i), "hash": hash_of(picture(i)), "alt": f"picture {i}", "seconds": 0.0}
        | {"short": f"short {i}", "descriptive": f"descriptive {i}"}
        | changes
        for i in range(first, first + count)
    ]
    write_rows(path, rows)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    for i in range(2):
        make_shard(tmp_path / "shards" / f"{i:05d}.tar", 10 * i, 10)
    return tmp_path / "shards"


def loaded(source: Path, num: int, seed: int = 3, **changes: Any) -> tuple[list[str], list[str]]:
    """Keys and captions of the first positions."""
    config = DataConfig(source=str(source), size=8, num_workers=0, val_fraction=0.0, **changes)
    batches = iter(Loader(config, seed=seed, batch_size=num))
    batch = next(batches)
    batches.close()
    return batch["key"], batch["caption"]


def test_the_blend_is_exactly_what_the_seed_of_each_position_says(shards: Path, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "out" / f"{i:05d}.captions.parquet", 10 * i, 10)
    num = 3000
    keys, captions = loaded(shards, num, captions=BLEND, recaptions=str(tmp_path / "out"))
    wanted = []
    for position, key in enumerate(keys):
        u = float(Streams([mix(3, position)], "data").uniform())
        wanted.append(f"picture {int(key)}" if u < 0.05 else f"descriptive {int(key)}")  # in the order of the file
    assert captions == wanted
    share = sum(caption.startswith("descriptive") for caption in captions) / num
    assert abs(share - 0.95) < 4 * (0.95 * 0.05 / num) ** 0.5
    assert loaded(shards, num, captions={"short": 1}, recaptions=str(tmp_path / "out"))[1] == [
        f"short {int(key)}" for key in keys
    ]
    assert loaded(shards, num, seed=4, captions=BLEND, recaptions=str(tmp_path / "out"))[1] != captions


def test_files_beside_the_shards_are_found(shards: Path) -> None:
    write(shards / "00001.captions.parquet", 10, 10)
    keys, captions = loaded(shards, 40, captions={"descriptive": 1})
    assert captions == [(f"descriptive {int(k)}" if int(k) >= 10 else f"picture {int(k)}") for k in keys]
    assert "left out" not in str(ShardSource(str(shards), 8))


def test_a_folder_finds_its_own_and_needs_no_other_captions(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 4)
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="no captions"):
        FolderSource(folder, 8)
    write(folder / "pictures.captions.parquet", 0, 4, "{:03d}", alt=None)
    keys, captions = loaded(folder, 12, captions=BLEND)
    assert captions == [f"descriptive {int(key)}" for key in keys]
    assert "left out" not in str(FolderSource(folder, 8))


def test_what_has_no_row_keeps_its_own_and_is_counted_at_the_start(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "out" / "00000.captions.parquet", 0, 7)
    write(tmp_path / "out" / "00001.captions.parquet", 10, 2, short=None)
    config = DataConfig(source=str(shards), size=8, num_workers=0, val_fraction=0.0, recaptions=str(tmp_path / "out"))
    caplog.set_level(logging.INFO)
    Loader(config, seed=0, batch_size=1).announce()
    assert f"captions of {tmp_path / 'out'}: 7 short, 9 descriptive; 11 pictures have only their own" in caplog.text
    keys, captions = loaded(shards, 60, captions=BLEND, recaptions=str(tmp_path / "out"))
    own = {c for k, c in zip(keys, captions, strict=True) if 7 <= int(k) < 10 or int(k) >= 12}
    assert own == {f"picture {i}" for i in (7, 8, 9, *range(12, 20))}


def test_a_picture_that_has_changed_since_keeps_its_own(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(shards / "00000.captions.parquet", 0, 10)
    rows = read_rows(shards / "00000.captions.parquet")
    rows[4]["hash"] = hash_of(b"another")
    write_rows(shards / "00000.captions.parquet", rows)
    keys, captions = loaded(shards, 100, captions={"short": 1})
    assert caplog.text.count("pictures have changed since they were captioned") == 1
    assert {c for k, c in zip(keys, captions, strict=True) if int(k) == 4} == {"picture 4"}
    assert {c for k, c in zip(keys, captions, strict=True) if int(k) == 5} == {"short 5"}


def test_where_pictures_are_not_read_the_key_decides(tmp_path: Path) -> None:
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float32))
    make_tar(tmp_path / "0.tar", [("0000.z.npy", file.getvalue()), ("0000.txt", b"own")])
    write(tmp_path / "0.captions.parquet", 0, 1, hash="of a picture that is not here")
    source = ShardSource(str(tmp_path / "0.tar"), 8, captions={"short": 1}, needs=("z", "caption"))
    assert source.load(0, Streams([0]))["caption"] == "short 0"


def test_its_own_captions_are_those_beside_it_now_or_those_it_came_with(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", 2)
    (folder / "001.txt").unlink()
    write(folder / "pictures.captions.parquet", 0, 2, "{:03d}", alt="one\ntwo", short=None)
    (folder / "000.txt").write_text("corrected\n")
    keys, captions = loaded(folder, 100, captions={"alt": 1})
    assert {*zip(keys, captions, strict=True)} == {("000", "corrected"), ("001", "one"), ("001", "two")}


def test_latents_have_the_captions_that_they_were_encoded_with(shards: Path, tmp_path: Path) -> None:
    """Their keys are numbers, and would find what was written of other pictures."""
    write(tmp_path / "out" / "00000.captions.parquet", 0, 10)
    (shards / FACTS).write_text("{}")
    with pytest.raises(UsageError, match=r"shards holds latents .* t2i data encode --recaptions .*out"):
        loaded(shards, 1, recaptions=str(tmp_path / "out"))
    write(shards / "00000.captions.parquet", 0, 10)
    assert "short 0" not in loaded(shards, 100, captions={"short": 1})[1]


def test_without_weights_kinds_weigh_as_in_the_shapes_world(shards: Path) -> None:
    for i in range(2):
        write(shards / f"{i:05d}.captions.parquet", 10 * i, 10)
    kinds = [caption.split()[0] for caption in loaded(shards, 2000)[1]]
    for kind, share in (("short", 0.6), ("descriptive", 0.25), ("picture", 0.15)):
        assert abs(kinds.count(kind) / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_processes_that_load_see_the_same(shards: Path) -> None:
    write(shards / "00000.captions.parquet", 0, 10)
    source = ShardSource(str(shards), 8, captions=BLEND)
    again = pickle.loads(pickle.dumps(source))
    for index in range(20):
        a, b = (one.load(index, Streams([index])) for one in (source, again))
        assert a["caption"] == b["caption"]
        assert torch.equal(a["image"], b["image"])


@pytest.mark.parametrize("where", ["gone", "empty"])
def test_a_folder_without_captions_is_refused(shards: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"=.*{where} holds no captions of .*: expected .*00000.captions"):
        loaded(shards, 1, recaptions=str(tmp_path / where))


def test_a_file_cut_short_is_one_line(shards: Path) -> None:
    write(path := shards / "00000.captions.parquet", 0, 10)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="is no whole parquet file"):
        loaded(shards, 1)


def test_shapes_are_no_files() -> None:
    with pytest.raises(UsageError, match="shapes are not files"):
        open_source("shapes", DataConfig(recaptions="x"), "train", Needs())
