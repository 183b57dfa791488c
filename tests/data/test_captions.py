"""Captions as Windows' Notepad, Excel and captioners write them, and captions that are longer than what is read."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_data import picture
from torch import nn

from t2i.core.errors import quoted
from t2i.core.seed import Streams
from t2i.core.types import Task
from t2i.data.folder import FolderSource
from t2i.data.source import BadSample, lines_of
from t2i.text.words import WordTokenizer
from t2i.train.log import announce


def captions_of(folder: Path, data: bytes) -> set[str]:
    """All that a caption file of these bytes may give."""
    (folder / "a.png").write_bytes(picture(1))
    (folder / "a.txt").write_bytes(data)
    source = FolderSource(folder, 8)
    return {source.load(0, Streams([seed]))["caption"] for seed in range(20)}


@pytest.mark.parametrize(
    "data",
    [
        b"a red cube",
        b"\xef\xbb\xbfa red cube",
        "a red cube".encode("utf-16"),
        b"\xfe\xff" + "a red cube".encode("utf-16-be"),
        "a red cube".encode("utf-32"),
        b"a red\0 cube",
        b"a red\x0ccube",
        b"a red\x0bcube\n",
        "a red\u2028cube".encode(),
        "a red\u2029cube".encode(),
        "a red\x85cube".encode(),
    ],
)
def test_one_caption_stays_one_and_clean(tmp_path: Path, data: bytes) -> None:
    assert captions_of(tmp_path, data) == {"a red cube"}


@pytest.mark.parametrize(
    "data", [b"one\r\ntwo\r\n", b"one\rtwo", b"one\n\xef\xbb\xbftwo\n", "one\r\n\ntwo".encode("utf-16")]
)
def test_only_ends_of_lines_part_captions(tmp_path: Path, data: bytes) -> None:
    assert captions_of(tmp_path, data) == {"one", "two"}


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b" \n\r\n", b"\0"])
def test_an_empty_caption_is_empty_also_with_a_byte_order_mark(tmp_path: Path, data: bytes) -> None:
    assert captions_of(tmp_path, data) == {""}


@pytest.mark.parametrize("data", ["a café".encode("cp1252"), b"\xff\xfea", b"\xff\xfe\x3e\xd8"])
def test_other_encodings_are_bad_samples(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadSample, match=r"caption is not UTF-8: .*a\.txt"):
        captions_of(tmp_path, data)


def test_what_a_caption_may_hold_stays() -> None:
    kept = "a\u00a0red\u200b &amp; \U0001f9ca café\tcube"
    assert lines_of(f"  {kept} ") == [kept]


class Reads(Task):
    """A task with a tokeniser of four tokens."""

    keys = ("image", "caption")

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1))
        self.tokenizer: Any = WordTokenizer(("a", "red", "cube", "and"), 6)


def test_captions_that_are_cut_are_told_once_with_their_count(caplog: pytest.LogCaptureFixture) -> None:
    task = Reads()
    room = task.tokenizer.room
    long, short = " ".join(["red"] * (room + 1)), " ".join(["red"] * room)
    with caplog.at_level(logging.WARNING):
        announce(task, {"caption": [short, short]}, torch.device("cpu"), torch.float32)
        assert not caplog.messages
        announce(task, {"caption": [short, long, long]}, torch.device("cpu"), torch.float32)
        expected = f"of the first captions 2 of 3 are longer than the {room} tokens that are read: {quoted(long, 60)}"
        assert caplog.messages == [expected]
        task.keys = ("image",)  # nobody reads them
        announce(task, {"caption": [long]}, torch.device("cpu"), torch.float32)
    assert caplog.messages == [expected]
