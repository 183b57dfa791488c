"""Masks, as painters and programs make them: which part of a picture is drawn anew."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.io.decode import damage_of, decoded
from t2i.io.images import to_grey

_ORIENTATION = 0x0112
_TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
"""How a stored picture becomes upright, by EXIF's number of its orientation; 1 is upright, from 5 on sides change."""


def open_mask(path: str | Path) -> Image.Image:
    """A mask with its own EXIF rotation applied; errors as in `open_image`. `to_mask_tensor` says what it masks."""
    mask = decoded(path)
    with damage_of(path):
        return ImageOps.exif_transpose(mask)


def to_mask_tensor(mask: Image.Image, of: Image.Image, size: int) -> Tensor:
    """(1, size, size), 1 where picture `of` is drawn anew and 0 where it stays.

    Of a mask that is transparent somewhere that part is drawn anew, as in DALL-E 2's interface; of any other what is
    white, by luminance 128 of 255 and more. A pixel of the result is 1 if anything of it is, so thin lines stay.
    A mask that was painted on the stored pixels of a picture that EXIF turns is turned with it.

    Raises:
        UsageError: no PIL picture, not as large as the picture, or nothing to draw anew.
    """
    if not isinstance(mask, Image.Image):
        raise UsageError(f"a mask is a PIL picture or the path of one, got {type(mask).__name__}")
    turn, sides = _orientation(of), of.size if _orientation(of) < 5 else (of.height, of.width)
    if _orientation(mask) != 1 or mask.size != of.size:
        turn = _orientation(mask)
    mask = mask.transpose(_TURNS[turn]) if turn != 1 else mask
    if mask.size != sides:
        raise UsageError(f"the mask has {mask.width} × {mask.height} pixels, the picture {sides[0]} × {sides[1]}")
    fresh = hole(mask)
    if fresh is None:
        grey = to_grey(mask) if mask.mode.startswith("I") else mask.convert("L")
        fresh = torch.from_numpy(np.array(grey)) > 127
    if not fresh.any():
        raise UsageError("the mask is empty: nothing in it is white, luminance 128 of 255 or more, or transparent")
    if size >= mask.width:
        white = Image.fromarray(fresh.numpy()).resize((size, size), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(white))[None].float()
    return F.adaptive_max_pool2d(fresh[None].float(), size)


def hole(image: Image.Image) -> Tensor | None:
    """(H, W), True where a picture is transparent by more than half; None if it is so nowhere."""
    if not image.has_transparency_data:
        return None
    fresh = torch.from_numpy(np.array(image.convert("RGBA").getchannel("A"))) < 128
    return fresh if fresh.any() else None


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where EXIF is missing or damaged."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # readers of EXIF raise all sorts
        return 1
    return turn if turn in range(1, 9) else 1
