"""Paths that users give."""

import os
from pathlib import Path

from t2i.core.errors import UsageError, quoted


def path_of(given: object, what: str = "a path") -> Path:
    """A path given as text, bytes or `Path`; UsageError for anything else, and for what no file can be called."""
    if not isinstance(given, str | bytes | os.PathLike):
        raise UsageError(f"{what} must be text or a Path, got {quoted(given)}")
    try:
        path = Path(os.fsdecode(given))
        raw = os.fsencode(path)
    except (TypeError, ValueError):  # a PathLike that is none, half a character
        raise UsageError(f"{what} is not one: {quoted(given)}") from None
    if b"\0" in raw or len(raw) > 4095 or any(len(part) > 255 for part in raw.split(b"/")):
        why = "has a NUL in it" if b"\0" in raw else "is too long"
        raise UsageError(f"{what} {why}: {quoted(os.fspath(given))}")
    return path
