"""Files that are whole or absent, and errors of disks in one line.

Every file appears under its final name only when it is complete (temporary file, fsync, `os.replace`).
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.core.paths import path_of
from t2i.core.reading import clear_errors, kind_of, read_bytes

MAX_JSON = 16 * 2**20
"""Bytes: some hundred thousand names of tensors, and, as Python objects, still less than 1 GB."""


def writable(folder: str | Path) -> Path:
    """Create a folder and prove that files can be written to it; called before work begins.

    Raises:
        UsageError: it cannot be created or written to.
        DataError: its disk is full.
    """
    folder = path_of(folder, "a folder")
    with clear_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".t2i-", suffix=f".{os.getpid()}.tmp") as file:
                file.write(b"\0" * 4096)
                file.flush()
        except FileExistsError:
            raise UsageError(f"{folder} is a file, expected a folder") from None
        except NotADirectoryError as error:
            raise UsageError(f"cannot create {folder}: {error.strerror}") from None
        except FileNotFoundError:  # such as /proc
            raise UsageError(f"cannot write to {folder}") from None
    return folder


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """`writable(folder)`; what was made of its path for work that failed before it left anything there goes again."""
    folder = path_of(folder, "a folder")
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield writable(folder)
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def writable_file(path: Path, name: str) -> None:
    """Prove that a file can be written, before work begins, to a folder that what writes it may have to make; `name` is
    what the user calls it.

    Raises UsageError for a folder and where it cannot be written, DataError for a full disk.
    """
    if path.is_dir():
        raise UsageError(f"{name} must be a file, {path} is a folder")
    writable(_standing(path.parent))


def room_for(folder: Path, size: int) -> None:
    """DataError if the disk of a folder, which need not be there yet, has no room for so many bytes; called before the
    work that makes them."""
    free = shutil.disk_usage(_standing(folder)).free
    if free < size:
        raise FullDiskError(f"no space left in {folder}: {size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; what was cut off, or is something else, is passed over."""
    rows = []
    with open(path, "rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def temporary_name(path: Path) -> Path:
    """What a file is called until it is whole; `t2i.io.lock` removes those of dead processes."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= 200 else hashlib.blake2b(name, digest_size=16).hexdigest()
    return path.with_name(f".t2i-{short}.{os.getpid()}.tmp")


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, also after a crash."""
    temporary = temporary_name(path)
    with clear_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A JSON file of at most `MAX_JSON` bytes, or a DataError that names it."""
    text = read_bytes(path, MAX_JSON)
    try:
        return json.loads(text)
    except ValueError:
        kind = kind_of(text[:512])
        raise DataError(f"{path} is {kind or 'not valid JSON (truncated?)'}") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply") from None


def _standing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
