"""How a picture was made, in the picture: JSON in a text chunk of a PNG, or in the user's comment that EXIF gives JPEG
and WebP."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from t2i.core.errors import DataError, UsageError
from t2i.io.decode import damage_of, decoded, once

RECIPE_KEY = "t2i"
SAVED = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}
"""What pictures are written as, by extension."""
MAX_RECIPE = 2**20
"""Characters; a thousand times what a call with one sentence has."""
MAX_EXIF = 65_000
"""Bytes that a JPEG has room for."""
_ASCII = b"ASCII\0\0\0"


def check_extension(path: str | Path, choices: Collection[str], name: str = "path") -> None:
    """UsageError for a path that ends in none of some extensions, of either case; `name` is what the user calls it."""
    if Path(path).suffix.lower() not in choices:
        raise UsageError(f"{name} must end in {', '.join(choices)}, got {path}")


def saved_as(path: str | Path) -> str:
    """The format in which a picture is written to a path; UsageError for an extension of none."""
    check_extension(path, SAVED)
    return SAVED[Path(path).suffix.lower()]


def metadata(recipe: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    """The options of `Image.save` that put a JSON-able recipe into a picture of this format; nothing for None, nor,
    with a warning, for one that a JPEG has no room for."""
    if recipe is None:
        return {}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(RECIPE_KEY, json.dumps(recipe, ensure_ascii=False))
        return {"pnginfo": text}
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + json.dumps({RECIPE_KEY: recipe}).encode()
    if kind == "JPEG" and len(exif.tobytes()) > MAX_EXIF:
        once("a recipe that is too long for a JPEG is left out; PNG and WebP have room for it")
        return {}
    return {"exif": exif}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe that a picture was written with.

    Raises:
        DataError: no such file, not a picture, or no recipe in it.
    """
    image = decoded(path)  # whole: text chunks may follow the pixels
    with damage_of(path):
        text = _text_of(image)
    if len(text) > MAX_RECIPE:
        raise DataError(f"{path}: its recipe has {len(text):,} characters, more than {MAX_RECIPE:,}")
    try:
        recipe = json.loads(text)
        recipe = recipe if isinstance(image, PngImagePlugin.PngImageFile) else recipe[RECIPE_KEY]
    except (ValueError, RecursionError, KeyError, TypeError):
        recipe = None
    if not isinstance(recipe, dict):
        raise DataError(f"{path} holds no t2i recipe")
    return recipe


def _text_of(image: Image.Image) -> str | bytes:
    """Where a recipe would be."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return image.text.get(RECIPE_KEY, "")
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    return comment.removeprefix(_ASCII) if isinstance(comment, bytes) else b""
