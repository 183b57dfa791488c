"""How long work takes, said while it lasts: bars on a terminal, a line every 30 seconds without one."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from t2i.core.errors import MAX_LINE, shown

EVERY = 30.0
"""Seconds that a long command may be silent."""
log = logging.getLogger("t2i")


def to_stderr(level: int = logging.INFO) -> None:
    """Show the messages of t2i on stderr, unless the program has set up logging itself."""
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("%(asctime)s  %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(level)


class _OneLine(logging.Formatter):
    """Captions, names of files and whatever else others wrote moves no cursor, and fills no screen."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(super().formatMessage(record), MAX_LINE)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2.4 h`, `131 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36000 else f"{seconds / 3600:.1f} h"


class Alive:
    """A context that says every 30 seconds what is still being done, unless something else was said.

    Args:
        what: such as "reading the weights".
        say: takes each line.
    """

    def __init__(self, what: str, say: Callable[[str], object] = log.info, every: float = EVERY) -> None:
        self.say, self.every, self._done = say, every, threading.Event()
        self.did(what)

    def did(self, what: str | None = None) -> None:
        """Something was said, or something else has begun."""
        self.heard = time.monotonic()
        if what is not None:
            self.what, self.began = what, self.heard

    def __enter__(self) -> Self:
        self.did(self.what)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(max(0.01, self.heard + self.every - time.monotonic())):
            if time.monotonic() - self.heard >= self.every:
                self.say(f"{self.what}: {duration(time.monotonic() - self.began)} so far")
                self.heard = time.monotonic()


class _Lines:
    """A stream on which a bar is a line each time."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            self.stream.write(f"{text}\n")

    def flush(self) -> None:
        self.stream.flush()


def bar(total: int | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """A progress bar of tqdm on stderr; without a terminal a line every 30 seconds, and none for what takes less."""
    if not show or sys.stderr.isatty():
        return tqdm(total=total, disable=not show, **options)
    quiet = {"file": _Lines(sys.stderr), "mininterval": EVERY, "delay": EVERY, "ncols": 100, "leave": True}
    return tqdm(total=total, **options | quiet)
