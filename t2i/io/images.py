"""The border of the library: PIL pictures outside, float NCHW in [-1, 1] inside.

Legend: B batch · H W pixels.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from t2i.core.errors import DataError, FullDiskError, NonFiniteError, UsageError
from t2i.core.paths import path_of
from t2i.core.reading import clear_errors
from t2i.io.colour import to_srgb
from t2i.io.decode import MAX_PIXELS, damage_of, decoded, once, unreadable
from t2i.io.files import temporary_name
from t2i.io.provenance import metadata, saved_as


def open_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS, keep_alpha: bool = False) -> Image.Image:
    """Read a picture as `to_rgb` makes it; with `keep_alpha`, as `upright` does. Errors as in `decoded`."""
    name = "image" if isinstance(source, bytes) else source
    image = decoded(source, max_pixels)
    with damage_of(name):
        return upright(image) if keep_alpha else to_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """Any mode, orientation and colour profile → upright 8-bit sRGB, RGBA where something is transparent and RGB where
    nothing is; 16 bits are scaled. UsageError for one that is `unreadable`."""
    if why := unreadable(image):
        raise UsageError(f"the picture {why}")
    image = ImageOps.exif_transpose(image)  # always a copy
    image.info.pop("exif", None)  # its turn is taken; a damaged block would be parsed, and fail, a second time
    profile, alpha = image.info.pop("icc_profile", None), None
    if image.mode.startswith("I"):
        image = to_grey(image)
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha, image = whole.getchannel("A"), whole.convert("L" if image.mode in ("L", "LA") else "RGB")
        image.info.pop("transparency", None)
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = to_srgb(image, profile)
    if alpha is not None and alpha.getextrema()[0] != 255:
        image.putalpha(alpha)
    return image


def to_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of whole numbers of 32 that are as small → 8 bits, mode L."""
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """`upright`, without transparency: what is transparent is laid on white, as a warning says once."""
    image = upright(image)
    if image.mode == "RGBA":
        once("what is transparent in a picture is laid on white")
    return on_white(image)


def on_white(image: Image.Image) -> Image.Image:
    """RGBA → RGB; other pictures stay as they are."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """What was drawn of a picture `on_white` → RGBA, transparent as that was (`alpha`, mode L, is resized), that looks
    the same on white."""
    alpha = alpha.resize(image.size, Image.Resampling.BICUBIC)
    share = np.asarray(alpha)[..., None].astype(np.float32) / 255  # (H, W, 1)
    own = (np.asarray(image) - 255 * (1 - share)) / share.clip(1 / 255)
    out = Image.fromarray(np.where(share > 0, own, 255).round().clip(0, 255).astype(np.uint8))
    out.putalpha(alpha)
    return out


def from_pil(image: Image.Image, size: int | None = None, channels: int = 3) -> Tensor:
    """A PIL picture → (3, H, W) in [-1, 1], or for one channel (1, H, W), its luminance; with `size`, the short side is
    resized to it and the centre square kept."""
    image = to_rgb(image) if channels == 3 else to_rgb(image).convert("L")
    if size is not None:
        image = centre_square(resize_short(image, size), size)
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, channels)  # uint8
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_square_tensor(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in [-1, 1] of a square PIL picture; UsageError for anything else."""
    if not isinstance(image, Image.Image):
        raise UsageError(f"expected a PIL picture, got {type(image).__name__}")
    if image.width != image.height:
        raise UsageError(f"the picture must be square, got {image.width} × {image.height}")
    return from_pil(image, size)


def composite(new: Tensor, old: Tensor, fresh: Tensor, blend: float = 0.0) -> Tensor:
    """New pictures where a mask is 1, the old one elsewhere; around its edge, over `blend` pixels, something of both.

    (B, 3, S, S), (3, S, S), (1, S, S) → (B, 3, S, S)
    """
    share = fresh[None]
    if blend > 0:
        reach = round(blend)
        share = F.avg_pool2d(F.pad(share, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)
    return share * new + (1 - share) * old


def to_pil(x: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] → B PIL pictures, or (B, 1, H, W) → B grey ones; values outside are clamped.

    Raises:
        NonFiniteError: NaN or infinity, which would otherwise come out as black pixels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"pictures must be (B, 3, H, W) or (B, 1, H, W), got {tuple(x.shape)}")
    x = x.detach().float().cpu()
    if not x.isfinite().all():
        bad = [i for i, picture in enumerate(x) if not picture.isfinite().all()]
        raise NonFiniteError(f"pictures {bad} hold NaN or infinity")
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # (B, H, W, C)
    pixels = pixels.squeeze(3) if x.shape[1] == 1 else pixels
    return [Image.fromarray(p) for p in pixels.contiguous().numpy()]


def resize_short(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the short side is `size`: antialiased bicubic, after an area average where far too large."""
    scale = size / min(image.size)
    target = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
    return image if target == image.size else image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre `size`×`size` of a picture that is at least that large."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def grid(x: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """(B, 3, H, W) or (B, 1, H, W) in [-1, 1] → one picture, row by row on white; `columns` defaults to a square
    arrangement."""
    return sheet(to_pil(x), columns, gap)


def sheet(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size → one picture of them, as in `grid`."""
    if not pictures:
        raise ValueError("a grid needs at least one picture, got 0")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].width + gap, pictures[0].height + gap
    whole = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * width, i // columns * height))
    return whole


def save_png(image: Image.Image, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
    """Write a PNG, with the JSON-able `recipe` that made it in a text chunk; the file appears whole or not at all,
    in a new folder if need be.

    Raises:
        UsageError: the file cannot be written. FullDiskError: the disk is full.
    """
    _save(image, path, "PNG", **metadata(recipe, "PNG"))


def save_image(image: Image.Image, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
    """Write a picture with the recipe that made it as what its path ends in, see `saved_as`: PNG, or JPEG or WebP of
    quality 95; errors as in `save_png`."""
    kind = saved_as(path)
    if kind == "JPEG" and image.mode == "RGBA":
        once("JPEG holds no transparency: it is laid on white")
        image = on_white(image)
    _save(image, path, kind, **({} if kind == "PNG" else {"quality": 95}), **metadata(recipe, kind))


def save_gif(pictures: Sequence[Image.Image], path: str | Path, seconds: float = 0.25) -> None:
    """Write pictures of one size as an endless animation, each for so many `seconds`; errors as in `save_png`."""
    _save(pictures[0], path, "GIF", save_all=True, append_images=pictures[1:], duration=1000 * seconds, loop=0)


def _save(image: Image.Image, path: str | Path, kind: str, **options: Any) -> None:
    path = path_of(path)
    temporary = temporary_name(path)
    try:
        with clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(temporary, kind, **options)
            os.replace(temporary, path)
    except FullDiskError:
        raise
    except DataError as error:  # no folder, or a file in its place: of the path that was given
        raise UsageError(f"cannot write {error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
