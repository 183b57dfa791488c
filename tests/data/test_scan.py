"""What a folder holds and what of it is left out, by reason; nothing is passed over without a word."""

import logging
import os
import unicodedata
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from files_of_data import make_folder, make_shard
from PIL import Image

from t2i.core.errors import DataError
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.folder import FolderSource
from t2i.data.loader import Loader, NothingHeldOutError
from t2i.data.opening import class_names
from t2i.data.scan import scan
from t2i.data.source import MAX_TEXT, BadSample, Tally
from t2i.io.decode import MAX_BYTES


def draw(path: Path, kind: str | None = None, value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 9, 9)).save(path, kind)


def classed(root: Path, needs: tuple[str, ...] = ("image",)) -> FolderSource:
    return FolderSource(root, 8, needs=needs)


def config(root: Path | str) -> DataConfig:
    return DataConfig(source=str(root), size=8, num_workers=0, val_fraction=0)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(3):
            draw(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/0-checkpoint.png",
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        ".thumbnails/x.png",
        "__MACOSX/cat/._0.png",
        "lost+found/0.png",
        "$RECYCLE.BIN/0.png",
        "System Volume Information/0.png",
    ],
)
def test_hidden_and_system_folders_are_no_classes_and_are_counted(pets: Path, name: str) -> None:
    clean = classed(pets)
    draw(pets / name)
    source = classed(pets)
    assert (source.classes, source.files) == (("cat", "dog"), clean.files)
    assert source.found.left_out.counts == {"hidden or of the system": 1}


def test_a_folder_may_itself_be_hidden(tmp_path: Path) -> None:
    draw(tmp_path / ".cache" / "pets" / "a.png")
    assert classed(tmp_path / ".cache" / "pets").files == ["a.png"]


@pytest.mark.parametrize(
    "files",
    [
        ("run.json", "metrics.jsonl"),
        ("model_index.json",),
        ("metrics.jsonl", "checkpoints/x"),
        ("config.json", "model.safetensors"),
        (),
    ],
)
def test_folders_that_t2i_wrote_are_passed_over(pets: Path, files: list[str]) -> None:
    for name in ("samples/inputs.png", *files):
        draw(pets / "run" / name, "PNG")
    source = classed(pets)
    assert (source.classes, len(source)) == (("cat", "dog"), 6)
    assert source.found.left_out.counts == {"written by t2i": 1}


def test_a_lone_run_json_is_a_users_own(pets: Path) -> None:
    (pets / "cat" / "run.json").write_text("{}")
    source = classed(pets)
    assert (source.classes, len(source)) == (("cat", "dog"), 6)
    assert source.found.left_out.counts == {".json": 1}


def test_pictures_may_lie_beside_a_run_in_one_folder(pets: Path) -> None:
    draw(pets / "samples" / "step-000001.png")
    draw(pets / "checkpoints" / "x.png")
    (pets / "run.json").write_text("{}")
    (pets / "metrics.jsonl").write_text("{}")
    source = classed(pets)
    assert (source.classes, len(source)) == (("cat", "dog"), 6)
    assert source.found.left_out.counts == {"written by t2i": 2, ".json": 1, ".jsonl": 1}


def test_linked_folders_are_read_once_and_loops_are_noticed(tmp_path: Path, pets: Path) -> None:
    chosen = tmp_path / "chosen"
    draw(chosen / "own" / "0.png")
    for name, target in {
        "cat": pets / "cat",
        "again": pets / "cat",
        "a-own": chosen / "own",  # sorted before the folder itself
        "own/up": chosen,
        "own/over": tmp_path,
    }.items():
        (chosen / name).symlink_to(target)
    source = classed(chosen)
    assert source.files == ["again/0.png", "again/1.png", "again/2.png", "own/0.png"]
    assert source.classes == ("again", "own")
    assert source.found.left_out.counts == {"linked and read already": 4}
    assert [source.load(i, Streams([0]))["label"] for i in range(4)] == [0, 0, 0, 1]


def test_links_to_files_are_pictures_and_links_to_nothing_are_counted(tmp_path: Path, pets: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for name, target in {
        "a.png": str(pets / "cat" / "0.png"),
        "gone.png": "/nowhere/0.png",
        "me.png": "me.png",
    }.items():
        (folder / name).symlink_to(target)
    source = classed(folder)
    assert source.keys == ["a"]
    assert source.found.left_out.counts == {"linked to nothing": 2}


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    source = classed(tmp_path)
    assert source.keys == ["a"]
    assert source.found.left_out.counts == {"neither file nor folder": 2}
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")  # after the scan
    with pytest.raises(BadSample, match="is a pipe, expected a file"):
        source.load(0, Streams([0]))


def test_files_beyond_the_limit_are_refused_before_reading(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", 2)
    for name, limit in (("000.png", MAX_BYTES), ("001.txt", MAX_TEXT)):
        os.truncate(folder / name, limit + 1)
    source = FolderSource(folder, 8)
    for index in range(2):
        with pytest.raises(BadSample, match=r"unreadable file: .* bytes, more than "):
            source.load(index, Streams([0]))


def test_pictures_of_every_kind_are_read_and_others_are_counted_by_kind(tmp_path: Path) -> None:
    kinds = {"png": "PNG", "JPG": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "webp": "WEBP", "gif": "GIF"}
    kinds |= {"bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "avif": "AVIF"}
    for name, kind in kinds.items():
        draw(tmp_path / f"a-{name}.{name}", kind)
    for name in ("x.heic", "y.HEIC", "z.psd", "png", "list.csv", "odd.p\x1bn"):
        (tmp_path / name).write_bytes(b"")
    source = classed(tmp_path)
    assert len(source) == len(kinds)
    for index in range(len(source)):
        assert source.load(index, Streams([0]))["image"].shape == (3, 8, 8)
    assert source.found.left_out.counts == {".heic": 2, ".psd": 1, ".csv": 1, "other files": 2}


def test_a_folder_of_other_kinds_says_what_it_holds(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no pictures \(jpg, .*avif\); left out: 2 .heic \(such as 0.heic\)$"):
        classed(tmp_path)


def test_captions_are_found_by_either_form_of_accents_and_in_capitals(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for picture, text in ((f"{nfc}.png", f"{nfd}.txt"), ("B.PNG", "B.TXT"), ("c.png", "c.txt"), ("d.png", "e.txt")):
        draw(tmp_path / picture)
        (tmp_path / text).write_text(f"of {text}")
    (tmp_path / "c.TXT").write_text("another")
    source = FolderSource(tmp_path, 8)
    captions = {key: source.load(i, Streams([0]))["caption"] for i, key in enumerate(source.keys) if key != "d"}
    assert captions == {nfc: f"of {nfd}.txt", "B": "of B.TXT", "c": "of c.txt"}
    with pytest.raises(BadSample, match=r"no caption: .*/d.txt does not exist"):
        source.load(source.keys.index("d"), Streams([0]))
    assert source.found.left_out.counts == {".txt beside no picture": 2}


def test_what_is_used_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "a", 3)
    draw(folder / "more" / "000.png")
    draw(folder / "000.jpg")
    for name in (".DS_Store", "x.heic", "y.heic"):
        (folder / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        make = Loader.announced(partial(Loader, config(folder)))
        for split, rank in (("train", 1), ("val", 0), ("train", 0), ("train", 0)):
            with suppress(NothingHeldOutError):
                make(seed=0, batch_size=2, rank=rank, world=2, split=split)
        class_names(config(folder))
    told = (
        "5 pictures from 2 folders, 4 with captions, 1 of one name but for its end (such as 000); "
        "left out: 2 .heic (such as x.heic), 1 hidden or of the system (such as .DS_Store)"
    )
    assert [line for line in caplog.messages if "left out" in line] == [f"{folder}: {told}"]


def test_long_lists_and_odd_names_make_a_short_line() -> None:
    tally = Tally()
    for number in range(300):
        tally.add(f".{number % 30:02d}", "\x1b[2J" + "é" * 200)
    assert len(str(tally)) < 800
    assert str(tally).startswith(r"10 .00 (such as \x1b[2J" + "é" * 56 + "… (204 characters)), ")
    assert str(tally).endswith(", 240 others")


def test_one_tar_among_pictures_is_told_and_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "a", 5)
    make_shard(folder / "backup.tar", 70, 1)
    with caplog.at_level(logging.INFO):
        loader = Loader(config(folder), seed=0, batch_size=5)
        loader.announce()
    assert sorted(next(iter(loader))["key"]) == [f"{i:03d}" for i in range(5)]
    assert caplog.messages[0].endswith("left out: 1 .tar beside pictures (such as backup.tar)")


def test_a_picture_among_tars_is_told_and_tars_below_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "part0").mkdir()
    make_shard(tmp_path / "part0" / "0.tar", 0, 2)
    make_shard(tmp_path / "part0" / "1.TAR", 2, 2)
    draw(tmp_path / "preview.png")
    with caplog.at_level(logging.INFO):
        loader = Loader(config(tmp_path), seed=0, batch_size=4)
        loader.announce()
    assert sorted(next(iter(loader))["key"]) == ["0000", "0001", "0002", "0003"]
    told = "4 samples from 2 tars; left out: 1 beside more tars (such as preview.png)"
    assert caplog.messages[0] == f"{tmp_path}: {told}"


def test_the_tree_is_counted_to_the_last_entry(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.png", "b/c.txt", "b/d/e.tar", "f.csv", ".x", "g/h/i.tif"):
        draw(tmp_path / name, "PNG")
    found = scan(tmp_path)
    assert (found.pictures, found.tars) == (["a.png", "b/c.png", "g/h/i.tif"], ["b/d/e.tar"])
    assert (found.captions, found.num_folders) == ({"b/c.png": "b/c.txt"}, 4)
    assert found.left_out.counts.total() == 2
