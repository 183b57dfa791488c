"""How a picture of any shape becomes a square one."""

import io
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from t2i.core.errors import lacks_memory, shown
from t2i.core.seed import Streams
from t2i.io.decode import FORMATS
from t2i.io.images import centre_square, resize_short

CropPolicy = Literal["center", "random", "pad"]

_SAID: dict[CropPolicy, str] = {
    "center": "cropped to their centre squares; data.crop_policy=pad keeps all of them",
    "random": "cropped to random squares; data.crop_policy=pad keeps all of them",
    "pad": "padded to squares with white",
}


def framed(image: Image.Image, size: int, crop: int | None, policy: CropPolicy, rng: Streams) -> Image.Image:
    """A square of `size` pixels: the centre or a random part of the picture whose short side has them, or all of the
    picture, whose long side has them, between white bars.

    With `crop`, a random window of that side of what is resized, wherever it lies: of a picture that is not padded
    neither the centre square nor another one is cut out before.
    """
    image = _padded(image, size) if policy == "pad" else resize_short(image, size)
    if crop is not None:
        return _random_window(image, crop, rng)
    return _random_window(image, size, rng) if policy == "random" else centre_square(image, size)


def told(heads: Sequence[tuple[str, bytes]], whole: int, policy: CropPolicy | None) -> list[str]:
    """What is to be said of some pictures by their names and first bytes: how many cannot be read, and how many are not
    square and what becomes of them.

    Args:
        whole: bytes that a head has at most; a file with fewer is told to be no picture, of others more may be needed.
        policy: None where no picture is cut to a square.
    """
    sizes, bad, lines = [], [], []
    for name, head in heads:
        try:
            with Image.open(io.BytesIO(head), formats=FORMATS) as image:
                sizes.append(image.size)
        except Exception as error:  # decoders raise all sorts
            if lacks_memory(error):
                raise
            if len(head) < whole:
                bad.append(name)
    odd = sum(width != height for width, height in sizes)
    seen = f"of {len(heads)} pictures that were looked at"
    if bad:
        lines.append(f"{len(bad)} {seen} cannot be read (such as {shown(bad[0], 60)})")
    if odd and policy is not None:
        lines.append(f"{odd} {seen} are not square: {_SAID[policy]}")
    return lines


def _padded(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), "white")
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def _random_window(image: Image.Image, crop: int, rng: Streams) -> Image.Image:
    left, top = int(rng.integers(image.width - crop + 1)), int(rng.integers(image.height - crop + 1))
    return image.crop((left, top, left + crop, top + crop))
