"""Paths that users give."""

import os
from pathlib import Path

from t2i.core.errors import UsageError, quoted

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp", "jpe", "jfif", "gif", "bmp", "tif", "tiff", "avif")
"""Ends of the names of pictures; of two in one sample of a shard, the first of these is taken."""


def path_of(given: object, what: str = "a path") -> Path:
    """A path given as text, bytes or `Path`; UsageError for anything else, and for what no file can be called, such as
    the empty one, which Path reads as the present folder."""
    if not isinstance(given, str | bytes | os.PathLike):
        raise UsageError(f"{what} must be text or a Path, got {quoted(given)}")
    try:
        path = Path(os.fsdecode(given))
        raw = os.fsencode(path)
    except (TypeError, ValueError):  # a PathLike that is none, half a character
        raise UsageError(f"{what} is not one: {quoted(given)}") from None
    if given in ("", b""):
        raise UsageError(f"{what} has no name: {quoted(given)}")
    if b"\0" in raw or len(raw) > 4095 or any(len(part) > 255 for part in raw.split(b"/")):
        why = "has a NUL in it" if b"\0" in raw else "is too long"
        raise UsageError(f"{what} {why}: {quoted(os.fspath(given))}")
    return path


def is_picture(text: str) -> bool:
    """Whether what may be a sentence or the path of a picture is that path: of a file, or of none but with the end of a
    picture's name, which is then said to be missing."""
    return os.path.isfile(text) or text.lower().endswith(tuple(f".{kind}" for kind in IMAGE_TYPES))
