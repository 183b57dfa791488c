"""Masks, as painters and programs make them: which part of a picture is drawn anew."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i.core.errors import UsageError, lacks_memory
from t2i.io.decode import decoded, once, unreadable
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
    """A mask as it is stored; errors as in `decoded`. `to_mask_tensor` turns it, and says what it masks."""
    return decoded(path)


def to_mask_tensor(mask: Image.Image, of: Image.Image, size: int, *, as_shown: bool = False) -> Tensor:
    """(1, size, size), 1 where picture `of` is drawn anew and 0 where it stays.

    Of a mask that is transparent somewhere that part is drawn anew, as in DALL-E 2's interface; of any other what is
    white, by luminance 128 of 255 and more. A pixel of the result is 1 if anything of it is, so thin lines stay.
    The result is upright, as EXIF says. A mask with an orientation of its own is turned by that; another one, if it has
    the size of the picture as it is stored and not that of the upright one, with the picture.

    Args:
        of: upright, or as it is stored, with what EXIF says of it.
        as_shown: how a mask is read that has both sizes, as a warning says once: painted on the upright picture, as
            programs show a file; else on the stored pixels, which are those of a PIL picture.

    Raises:
        UsageError: no PIL picture, `unreadable`, not as large as the picture, or nothing to draw anew.
    """
    if not isinstance(mask, Image.Image):
        raise UsageError(f"a mask is a PIL picture or the path of one, got {type(mask).__name__}")
    if why := unreadable(mask):
        raise UsageError(f"the mask {why}")
    mask = _upright(mask, of, as_shown)
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


def _upright(mask: Image.Image, of: Image.Image, as_shown: bool) -> Image.Image:
    """A mask as `to_mask_tensor` turns it; UsageError for one that is not as large as the upright picture then."""
    of_picture = _orientation(of) or 1
    sides = of.size if of_picture < 5 else (of.height, of.width)
    if (turn := _orientation(mask)) is None:
        stored = mask.size == of.size
        if stored and mask.size == sides and of_picture != 1:
            where = "the upright picture, as it is shown" if as_shown else "its stored pixels, as PIL gives them"
            once(f"EXIF turns the picture and says nothing of the mask, which is taken to be painted on {where}")
            stored = not as_shown
        turn = of_picture if stored else 1
    mask = mask.transpose(_TURNS[turn]) if turn != 1 else mask
    if mask.size != sides:
        raise UsageError(f"the mask has {mask.width} × {mask.height} pixels, the picture {sides[0]} × {sides[1]}")
    return mask


def _orientation(image: Image.Image) -> int | None:
    """1 to 8; None where EXIF is missing or damaged, or says something else."""
    try:
        turn = image.getexif().get(_ORIENTATION)
    except Exception as error:  # readers of EXIF raise all sorts
        if lacks_memory(error):
            raise
        return None
    return turn if turn in range(1, 9) else None
