"""Files of users, read with care: regular files only, of a bounded size, told apart by their first bytes."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.core.paths import path_of

_KINDS = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
_SIGNATURES = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\1\0": "ICO",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of git-lfs, not its file",
    b"\x1f\x8b": "gzip",
    b"PK\3\4": "a zip file",
    b"\x80\2": "a pickle",
    b"ID3": "MP3",
    b"\x1aE\xdf\xa3": "WebM",
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"isom": "MP4", b"mp42": "MP4"}


def kind_of(head: bytes) -> str | None:
    """What a file is by its first bytes, where that is something often taken for what it is not; None for the rest."""
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    text = head.lstrip().lower()
    return next((kind for first, kind in _SIGNATURES.items() if head.startswith(first) or text.startswith(first)), None)


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file that has at most `limit`; what is larger is not read.

    Raises DataError as `open_regular`.
    """
    with open_regular(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it grew, or is one of /proc, which say that they are empty
        raise DataError(f"{path} has more than {limit:,} bytes")
    return data


@contextmanager
def open_regular(path: str | Path, limit: int | None = None) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes, open for reading: of a pipe or a device one would wait for ever.

    Raises DataError in one line that names the path, UsageError for what no file can be called.
    """
    path_of(path)
    with clear_errors(path), open(path, "rb", opener=_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            kind = next((name for test, name in _KINDS if test(about.st_mode)), "no file")
            raise DataError(f"{path} is {kind}, expected a file")
        if limit is not None and about.st_size > limit:
            raise DataError(f"{path} has {about.st_size:,} bytes, more than {limit:,}")
        yield file


@contextmanager
def clear_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of the operating system into one line that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FullDiskError(f"no space left to write {path}") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"no permission for {path}: {error.strerror}") from None
        if error.errno == errno.ENOENT:
            raise DataError(f"{path} does not exist") from None
        raise DataError(f"{path}: {error.strerror or error}") from None


def _at_once(path: str, flags: int) -> int:
    """Open a pipe without waiting for who writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
