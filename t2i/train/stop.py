"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP end a run between two steps, with its state saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal came while a run waited for something that may never come."""


class StopRequest:
    """A context in which signals set `name` instead of killing the process; a second SIGINT does interrupt.

    SIGHUP stays ignored where it is, as below nohup.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._pid = os.getpid()
        self._waiting = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked loader process
            return
        if self.name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._waiting:
            self._waiting = False  # one is enough
            raise Interrupted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
