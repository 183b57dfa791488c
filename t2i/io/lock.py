"""One writer at a time in a folder, which also removes what killed ones left there."""

import importlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2i.core.errors import UsageError
from t2i.core.reading import clear_errors

log = logging.getLogger(__name__)

LOCK = ".t2i.lock"
_EARLIER = r"[a-z_]+\.json|[\w.-]+\.safetensors(?:\.index\.json)?|metrics\.jsonl|(?:step-\d+|inputs)\.png"
_TEMPORARY = re.compile(rf"\.(?:t2i-.+|{_EARLIER})\.(\d{{1,9}})\.tmp|\.t2i-[a-z0-9_]+\.tmp")
"""Names of `files.temporary_name`, and of what earlier versions wrote."""
_held: set[int] = set()  # descriptors; a loader that outlives its killed parent must not hold on to the lock


def _forked() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def sole_writer(
    folder: Path, doing: str = "written", instead: str = "wait for it or choose another folder"
) -> Iterator[bool]:
    """Hold a folder, which is there, for the life of the context; temporary files of dead processes in it go first.

    The lock ends with its process, however that ends. Where a network file system or a machine has no locks, a warning
    says so, nothing is removed, and the context gives False.

    Raises UsageError for a folder that another process, or this one, holds: `FOLDER is being {doing} by …; {instead}`.
    """
    path = folder / LOCK
    with clear_errors(path):
        taken = _take(path)
    if taken is None:
        raise UsageError(f"{folder} is being {doing} by {_holder(path)}; {instead}")
    descriptor, locked = taken
    _held.add(descriptor)
    try:
        with clear_errors(path):
            os.ftruncate(descriptor, 0)
            now = time.strftime("%Y-%m-%d %H:%M")
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())
        if locked:
            remove_temporaries(folder)
        yield locked
    finally:
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files and folders that dead processes of this machine left in a folder."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (found[1] and _alive(int(found[1]))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _take(path: Path) -> tuple[int, bool] | None:
    """A descriptor of the lock file, and whether it holds that; None if another one does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl = importlib.import_module("fcntl")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except (OSError, ImportError) as error:
            why = error.strerror if isinstance(error, OSError) else "not on this system"
            log.warning("%s cannot be locked (%s): see that no other process writes there", path.parent, why)
            return descriptor, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        os.close(descriptor)  # whoever had it removed it meanwhile


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")[:200] or "another process"
    return "another process"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
