"""Errors a user can do something about. Each carries the exit code of the command line."""

import difflib
from collections.abc import Iterable


class T2IError(ValueError):
    """Base of every error that t2i raises on purpose; the message is one line and names the culprit."""

    exit_code = 1


class UsageError(T2IError):
    """A wrong argument, configuration key or path."""

    exit_code = 2


class DataError(T2IError):
    """Files that are missing, damaged or too often unreadable, or a disk that refuses them."""

    exit_code = 3


class FullDiskError(DataError):
    """No room to write; what was read is not to blame."""


class NonFiniteError(T2IError):
    """NaN or infinity in a loss, a gradient or a picture."""

    exit_code = 4


class Stopped(T2IError):
    """A signal asked training to stop; the state was saved and the same command continues (75 is EX_TEMPFAIL)."""

    exit_code = 75


def did_you_mean(name: object, known: Iterable[str], prefix: str = "") -> str:
    """`, did you mean 'x'?` for the nearest known name, after a prefix, or nothing if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f", did you mean {prefix + near[0]!r}?" if near else ""
