"""Pictures of users, decoded: what a few formats say, and never a program in a file that is named like a picture."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from t2i.core.errors import DataError, T2IError, lacks_memory, shown
from t2i.core.reading import kind_of, read_bytes

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")
"""All that is decoded. Pillow tells formats by content and knows forty more; for EPS it starts Ghostscript."""
MAX_PIXELS = 64_000_000
MAX_BYTES = 8 * MAX_PIXELS
"""Four channels of 16 bits: no format needs more, even without compression."""

log = logging.getLogger(__name__)


def decoded(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of a picture as it is stored, with all that Pillow knows of it; sizes are checked before bytes
    are read, and again before they are decoded.

    Raises:
        DataError: no regular file, none of `FORMATS`, damaged, more than `MAX_BYTES` or `max_pixels`, or `unreadable`.
    """
    name, data = ("image", source) if isinstance(source, bytes) else (source, read_bytes(source, MAX_BYTES))
    if len(data) > MAX_BYTES:
        raise DataError(f"{name} has {len(data):,} bytes, more than {MAX_BYTES:,}")
    with damage_of(name):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            kind = kind_of(data[:64])
            what = "not a picture that can be read" if kind is None else f"{kind}, not one of {', '.join(FORMATS)}"
            raise DataError(f"{name} is {what}") from None
        except Image.DecompressionBombError:
            raise DataError(f"{name} is of more than {max_pixels / 1e6:.0f} megapixels") from None
        if image.width * image.height > max_pixels:
            raise DataError(f"{name} is {image.width}×{image.height}, more than {max_pixels / 1e6:.0f} megapixels")
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo and its previews
            once("of a picture of several frames the first is used")
        image.load()
        if why := unreadable(image):
            raise DataError(f"{name} {why}")
        return image


def unreadable(image: Image.Image) -> str | None:
    """Why a picture that was decoded shows nothing: it has no pixels, or its numbers are none of 8 or 16 bits."""
    if 0 in image.size:
        return f"has no pixels: {image.width} × {image.height}"
    if image.mode not in ("I", "F"):
        return None
    low, high = image.getextrema()
    if image.mode == "I" and 0 <= low <= high <= 65535:  # type: ignore[operator]
        return None
    return f"is of mode {image.mode} with numbers from {low:g} to {high:g}; whole ones from 0 to 65,535 are read"


@contextmanager
def damage_of(name: str | Path) -> Iterator[None]:
    """Errors of decoders as one line that names the picture; a lack of memory is none of them."""
    try:
        yield
    except T2IError:
        raise
    except Exception as error:  # they, and EXIF readers, raise all sorts: struct.error, TypeError, SyntaxError …
        if lacks_memory(error):
            raise
        raise DataError(f"{name} is damaged: {shown(error)}") from None


_notices: ContextVar[set[str] | None] = ContextVar("notices", default=None)


@contextmanager
def noticed() -> Iterator[set[str]]:
    """What `once` would say in this context, for another process to say."""
    notices: set[str] = set()
    before = _notices.set(notices)
    try:
        yield notices
    finally:
        _notices.reset(before)


def once(message: str) -> None:
    """Log a warning, once in a process, of however many pictures it is true."""
    notices = _notices.get()
    if notices is None:
        _say(message)
    else:
        notices.add(message)


@cache
def _say(message: str) -> None:
    log.warning("%s (said once)", message)
