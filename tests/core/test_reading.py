"""Files of users: only regular ones are read, none larger than asked for, and each is called what it is."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from t2i.convert.convert import convert_files, read_weights
from t2i.core.errors import DataError, UsageError, shown
from t2i.core.reading import kind_of, open_regular, read_bytes
from t2i.io import files, weights
from t2i.io.images import open_image, save_png
from t2i.io.provenance import read_recipe


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path, 5) == read_bytes(str(tmp_path / "link"), 5) == b"12345"
    with pytest.raises(DataError, match=r"a has 5 bytes, more than 4$"):
        read_bytes(path, 4)


def test_a_sparse_file_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"a has 1,099,511,627,776 bytes, more than 16,777,216$"):
        files.read_json(tmp_path / "a")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone says that such files are empty")
def test_a_file_that_is_larger_than_it_says_is_refused() -> None:
    with pytest.raises(DataError, match=r"/proc/self/status has more than 10 bytes"):
        read_bytes("/proc/self/status", 10)


@pytest.mark.parametrize("read", [lambda p: read_bytes(p, 10), files.read_json, weights.stored_folder])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, read) -> None:
    """Nobody writes to the pipe, and /dev/zero never ends."""
    where = tmp_path / "config.json"
    path = tmp_path if read is weights.stored_folder else where
    os.mkfifo(where)
    with pytest.raises(DataError, match=r"config.json is a pipe, expected a file$"):
        read(path)
    where.unlink()
    where.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"config.json is a device, expected a file$"):
        read(path)
    where.unlink()
    where.mkdir()
    with pytest.raises(DataError, match=r"config.json: Is a directory$"):
        read(path)


def test_a_pipe_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"model.safetensors is a pipe"):
        weights.load_folder(tmp_path)
    with pytest.raises(DataError, match=r"model.safetensors is a pipe"):
        weights.fingerprint({"clip": tmp_path})


def test_sockets_absent_files_loops_and_no_paths_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(DataError, match=r"^socket: No such device or address"), open_regular("socket"):
            pass
    Path("loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"^loop: Too many levels"):
        read_bytes("loop", 1)
    with pytest.raises(DataError, match=r"^none does not exist"):
        read_bytes("none", 1)


def test_what_no_file_can_be_called_is_refused_wherever_it_is_read_or_written() -> None:
    picture = Image.new("RGB", (4, 4))
    uses: list[Callable[[str], object]] = [
        lambda name: read_bytes(name, 1),
        open_image,
        read_recipe,
        lambda name: save_png(picture, name),
        files.writable,
        lambda name: files.output_folder(name).__enter__(),
        lambda name: convert_files([name], "out"),
        lambda name: convert_files(["a.pt"], name),
        read_weights,
    ]
    names = {"a\0b": "has a NUL in it", "a\ud800": "is not one", "": "has no name", "x" * 300: "is too long"}
    for use in uses:
        for name, why in names.items():
            with pytest.raises(UsageError, match=f"^a (path|folder) .*{why}"):
                use(name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_too_deeply_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a.json is nested too deeply$"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"\n  <!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs, not its file"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"P6\n2 2", "PPM"),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"Pixels", None),
    ],
)
def test_a_file_is_called_what_its_first_bytes_say(head: bytes, kind: str | None) -> None:
    assert kind_of(head) == kind


def test_text_of_others_moves_no_cursor_and_is_cut() -> None:
    assert shown("a „red” cube 赤 👩\u200d🚀") == "a „red” cube 赤 👩\u200d🚀"
    assert shown("\x1b[2Jred\r\nb\x07\u202egnp.exe\u2028\x9b") == "\\x1b[2Jred\\r\\nb\\x07\\u202egnp.exe\\u2028\\x9b"
    assert shown("a" * 50_000_000) == "a" * 200 + "… (50,000,000 characters)"
    assert shown("\udcff") == "\\udcff"
