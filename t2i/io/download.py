"""One file from the network: resumed where it broke off, checked, and whole or absent under its name."""

import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from t2i.core.errors import DataError, FullDiskError
from t2i.core.progress import bar
from t2i.core.reading import clear_errors
from t2i.io.files import writable
from t2i.version import __version__

log = logging.getLogger(__name__)

ATTEMPTS = 4  # in a row that bring nothing
WAIT = 0.5  # seconds before another attempt, doubled for each in a row that brought nothing
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**20  # bytes


class _Dropped(Exception):
    """A connection that failed in a way that may pass."""


def download(url: str, path: str | Path, *, md5: str | None = None, progress: bool = True) -> Path:
    """Fetch a file to `path`, unless it is there; what an earlier call left in `path.part` is not fetched again.

    A connection that drops is tried again. Of several processes that want the same file one fetches it.

    Args:
        md5: of the whole file, in hexadecimal digits.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: there is no network, no such file, no space, or what came is not the file.
    """
    path = Path(path)
    if path.is_file():
        return path
    writable(path.parent)
    part = path.with_name(f"{path.name}.part")
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            _fetch(url, part, bar(desc=path.name, unit="B", unit_scale=True, show=progress))
            if md5 is not None and (found := _md5(part)) != md5.lower():
                part.unlink()
                raise DataError(f"{url}: damaged, its MD5 is {found} instead of {md5}; download it again")
            os.replace(part, path)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time do some work.

    The lock file is removed once the work succeeded: who waited for it must look whether there is still work to do.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that works in %s", path.parent)
        lock.acquire()
    try:
        yield
        path.unlink(missing_ok=True)
    finally:
        lock.release()


def _fetch(url: str, part: Path, told: tqdm) -> None:
    """Fill `part`, in as many attempts as bring something, and `ATTEMPTS` that do not."""
    most, failed = _size(part), 0
    with told:
        while True:
            try:
                return _attempt(url, part, told)
            except _Dropped as error:
                reason = error
            failed = 0 if _size(part) > most else failed + 1
            most = max(most, _size(part))
            if failed == ATTEMPTS:
                raise DataError(f"{url}: {reason}; the same command continues where it stopped")
            time.sleep(WAIT * 2**failed)


def _attempt(url: str, part: Path, told: tqdm) -> None:
    """Append what is missing; raises _Dropped if there is still something missing then."""
    size = _size(part)
    answer = _open(url, size)
    if answer is None:  # nothing follows those bytes
        return
    with answer:
        start, total = _extent(answer, size)
        if answer.headers.get_content_type() == "text/html":
            raise DataError(f"{url}: a web page instead of a file")
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise FullDiskError(f"no space left to write {part}: it needs {total - start:,} bytes, {free:,} are free")
        told.total, told.n = total, start
        told.refresh()
        with clear_errors(part), open(part, "ab" if start else "wb") as file:
            for block in _blocks(answer):
                file.write(block)
                told.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and (size := _size(part)) != total:
        if size > total:
            part.unlink()
            raise DataError(f"{url}: {size:,} bytes came instead of {total:,}; download it again")
        raise _Dropped(f"broke off after {size:,} of {total:,} bytes")


def _open(url: str, start: int) -> HTTPResponse | None:
    """The answer to a request for what follows the first `start` bytes, None if that is nothing.

    `part` can be as large as the file only if an earlier process died before it renamed it.
    """
    headers = {"User-Agent": f"t2i/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
                return None
            if error.code == 416:  # `part` is of another file
                return _open(url, 0)
            reason = f"{error.code} {error.reason}"
            if error.code >= 500 or error.code in (408, 429):
                raise _Dropped(reason) from None
            raise DataError(f"{url}: {reason}") from None
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror):
            raise DataError(f"{url}: no network, or no host {urlsplit(url).hostname}") from None
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: {cause.verify_message}") from None
        raise _Dropped(_words(cause)) from None


def _extent(answer: HTTPResponse, asked: int) -> tuple[int, int | None]:
    """Where in the file an answer starts, and the size of the whole file if it is told.

    Servers that ignore Range send the whole file with status 200.
    """
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != asked:
            raise _Dropped(f"sent {answer.headers.get('Content-Range')}, asked for bytes from {asked:,}")
        return asked, None if found[2] == "*" else int(found[2])
    return 0, answer.length


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    """The body, with errors of the network told from those of the disk that it is written to."""
    try:
        while block := answer.read(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _Dropped(_words(error)) from None


def _words(error: object) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
