"""Numbers that a colour profile (ICC) gives another meaning, as the sRGB numbers of the same colours."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from t2i.io.decode import once

MAX_PROFILE = 8 * 2**20
"""Bytes; those of printing presses have 3 MB."""
SAME = 2
"""Of 255: a profile that moves no colour by more is one of the many that write sRGB down."""
_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode L, RGB or CMYK → RGB, by its profile: relative colorimetric, with black point compensation.

    Without a profile, or with one that says sRGB, L and RGB keep their numbers. One that cannot be read, or is for
    another kind of picture, is taken for sRGB, with a warning.
    """
    if profile:
        try:
            if image.mode == "L" and not _is_grey(profile):  # often one of RGB
                image = image.convert("RGB")
            if (transform := _transform(profile, image.mode)) is not None:
                image = transform.apply(image)
                image.info.pop("icc_profile", None)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            once("a colour profile that cannot be used is taken for sRGB")
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What makes sRGB of pictures of a mode; None where it would change nothing. ValueError for another mode's."""
    given = _opened(profile)
    if given.profile.xcolor_space != _SPACES[mode]:
        raise ValueError(f"a profile of {given.profile.xcolor_space}")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17 if mode == "L" else 51, dtype=np.uint8)
    steps = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    before = Image.fromarray(steps)
    after = np.asarray(transform.apply(before)).astype(int)
    return None if np.abs(after - np.asarray(before.convert("RGB"))).max() <= SAME else transform


@lru_cache(maxsize=16)
def _is_grey(profile: bytes) -> bool:
    return _opened(profile).profile.xcolor_space == "GRAY"


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    if len(profile) > MAX_PROFILE:
        raise ValueError(f"a profile of {len(profile)} bytes")
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))
