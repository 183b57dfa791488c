"""Shards that are written by us: each appears whole or not at all, and knows what it was written with, so that a
broken-off command continues."""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from t2i.core.errors import T2IError, UsageError
from t2i.core.reading import clear_errors, open_regular
from t2i.io.files import temporary_name

_SETTINGS, _LENGTH = "t2i.settings", "t2i.length"  # global pax headers of a shard


def lengths(folder: Path, settings: str) -> dict[Path, int]:
    """How many samples the shards of a folder were meant to have; UsageError for those of other settings."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        theirs, found[path] = _mark(path)
        if theirs != settings:
            raise UsageError(f"{path} is of {theirs}, not of {settings}: write to another folder or remove it")
    return found


@contextmanager
def shard(path: Path, settings: str, length: int) -> Iterator[tarfile.TarFile]:
    """A tar to add to, under its name only when it is whole; DataError for a full disk."""
    temporary = temporary_name(path)
    header = {_SETTINGS: settings, _LENGTH: str(length)}
    with clear_errors(path):
        try:
            with tarfile.open(temporary, "w", pax_headers=header) as tar:
                yield tar
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def add(tar: tarfile.TarFile, key: str, files: Mapping[str, bytes]) -> None:
    """Append the files of one sample, by their endings."""
    for ending, content in files.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _mark(path: Path) -> tuple[str, int]:
    """The settings that a shard was written with, in words, and its number of samples."""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return tar.pax_headers[_SETTINGS], int(tar.pax_headers[_LENGTH])
    except (tarfile.TarError, T2IError, LookupError, ValueError):
        return "unknown settings", 0
