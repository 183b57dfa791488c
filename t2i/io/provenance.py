"""How a picture was made, in a text chunk of its PNG."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from t2i.core.errors import DataError

RECIPE_KEY = "t2i"


def text_chunk(recipe: dict[str, Any] | None) -> PngImagePlugin.PngInfo:
    """What a PNG with this JSON-able recipe is saved with; nothing for None."""
    text = PngImagePlugin.PngInfo()
    if recipe is not None:
        text.add_itxt(RECIPE_KEY, json.dumps(recipe, ensure_ascii=False))
    return text


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe that `save_png` put in a PNG.

    Raises:
        DataError: no such file, not a picture, or no recipe in it.
    """
    try:
        with Image.open(path) as image:
            image.load()  # text chunks may follow the pixels
            text = getattr(image, "text", {}).get(RECIPE_KEY)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} is not a picture that can be read") from None
    try:
        recipe = json.loads(text) if text is not None else None
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict):
        raise DataError(f"{path} holds no t2i recipe")
    return recipe
