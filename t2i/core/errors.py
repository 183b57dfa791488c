"""Errors a user can do something about. Each carries the exit code of the command line."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

UNSEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Characters that move a terminal's cursor, end its line or turn its writing about, and halves of characters."""


MAX_LINE = 2000
"""Characters of a line on a terminal, whatever others wrote into it."""


class T2IError(Exception):
    """Base of every error that t2i raises on purpose; the message is one line and names the culprit."""

    exit_code = 1


class UsageError(T2IError, ValueError):
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


class OutOfMemoryError(T2IError):
    """A device, or the machine, has no room for what was asked; the message says what needs less."""

    exit_code = 5


class Stopped(T2IError):
    """A signal asked training to stop; the state was saved and the same command continues (75 is EX_TEMPFAIL)."""

    exit_code = 75


_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)  # as torch says it


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no room."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


@contextmanager
def explain(where: str, kind: type[T2IError]) -> Iterator[None]:
    """Turn what a wrong value provokes (ValueError, KeyError) into one line of `kind` that starts with `where`.

    Errors of t2i pass as they are, so none changes its exit code; so does everything else, which is a mistake of ours.
    """
    try:
        yield
    except T2IError:
        raise
    except (ValueError, KeyError) as error:
        raise kind(f"{where}: {reason(error)}") from error


@contextmanager
def named(where: str) -> Iterator[None]:
    """Let an error of t2i begin with what the user wrote; its kind stays."""
    try:
        yield
    except T2IError as error:
        raise type(error)(f"{where}: {error}") from error


def reason(error: Exception) -> str:
    """What an error says, in one line: of pydantic's every key with the value that it was given, of a KeyError what is
    lacking."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        places = [
            (".".join(map(str, p["loc"])), p["msg"].removeprefix("Value error, "), p["input"]) for p in problems()
        ]
        return "; ".join(
            f"{place}: {message}, got {quoted(given)}" if place and not isinstance(given, dict) else message
            for place, message, given in places
        )
    if isinstance(error, KeyError):
        return f"lacks {quoted(error.args[0])}" if error.args else "lacks a key"
    return " ".join(str(error).split()) or type(error).__name__


def shown(text: object, limit: int = 200) -> str:
    """Text of others as one line for a terminal: control characters escaped as in Python, and cut, with its length, at
    `limit` characters."""
    text = str(text)
    cut = f"… ({len(text):,} characters)" if len(text) > limit else ""
    return UNSEEN.sub(lambda found: repr(found[0])[1:-1], text[:limit]) + cut


def did_you_mean(name: object, choices: Iterable[str], prefix: str = "") -> str:
    """`, did you mean 'x'?` for the nearest of some names, after a prefix; nothing if none is near, or for no text."""
    near = difflib.get_close_matches(name, list(choices), n=1) if isinstance(name, str) else []
    return f", did you mean {prefix + near[0]!r}?" if near else ""


def quoted(value: object, limit: int = 100) -> str:
    """What a user gave, as Python writes it, cut at `limit` characters; its type where that cannot be written."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of more than 4300 digits, or an object whose own repr fails in any way
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
