"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP end a run between two steps, with its state saved."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from t2i.core.errors import Stopped

log = logging.getLogger(__name__)
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # some systems have no more than the first two
SIGNALS = tuple(number for name in NAMES if (number := getattr(signal, name, None)) is not None)


PATIENCE = 60.0
"""Seconds that one of several processes, asked to end, still waits for data."""


class Interrupted(BaseException):
    """A signal came while a run waited for something that may never come."""


class StopRequest:
    """A context in which signals set `name` instead of killing the process; a second SIGINT does interrupt.

    SIGHUP stays ignored where it is, as below nohup.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._pid = os.getpid()
        self._waiting = self._patient = False
        self._timer: threading.Timer | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which a signal, or one that came before, raises Interrupted."""
        self._waiting = True
        try:
            if self.name is not None:
                raise Interrupted
            yield
        finally:
            self._waiting = False

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """A context in which a signal, or one that came before, ends the process with 75 after `PATIENCE` seconds: what
        several processes have done since the last checkpoint can be saved by all of them or by none."""
        self._patient = True
        try:
            if self.name is not None:
                self._start()
            yield
        finally:
            self._patient = False
            if self._timer is not None:
                self._timer.cancel()

    def _start(self) -> None:
        self._timer = threading.Timer(PATIENCE, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        log.error("%s: no data came for %g s: ended, and what follows the last checkpoint is lost", self.name, PATIENCE)
        for child in multiprocessing.active_children():  # loaders are deaf to signals that ask
            child.kill()
        os._exit(Stopped.exit_code)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader process
            return
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._waiting:
            self._waiting = False  # one is enough
            raise Interrupted
        if self._patient:
            self._patient = False
            self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
