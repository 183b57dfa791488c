"""The border of the library: PIL pictures outside, float NCHW in [-1, 1] inside.

Legend: B batch · H W pixels.
"""

import errno
import io
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.io.files import temporary_name
from t2i.io.provenance import text_chunk

MAX_PIXELS = 64_000_000


def open_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture: size checked before decoding, EXIF rotation applied, transparency laid on white, RGB.

    Raises:
        DataError: missing, not a picture, truncated, or more than `max_pixels`.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > max_pixels:
                raise DataError(f"{name} is {image.width}×{image.height}, more than {max_pixels / 1e6:.0f} megapixels")
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise DataError(f"{name} is not a picture that can be read") from None
    except DataError:
        raise
    except Exception as error:  # decoders and EXIF readers raise all sorts: struct.error, TypeError, SyntaxError …
        raise DataError(f"{name} is damaged: {error}") from None


def open_mask(path: Path) -> Image.Image:
    """A mask as it is stored; DataError as in `open_image`. `to_mask_tensor` says whether it is one."""
    open_image(path)
    with Image.open(path) as mask:
        mask.load()
        return mask.copy()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode and orientation → upright RGB without EXIF; transparent pixels become white, 16-bit grey is scaled."""
    image = ImageOps.exif_transpose(image)  # always a copy
    image.info.pop("exif", None)  # its turn is taken; a damaged block would be parsed, and fail, a second time
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def from_pil(image: Image.Image, size: int | None = None) -> Tensor:
    """A PIL picture → (3, H, W) in [-1, 1]; with `size`, the short side is resized to it and the centre square kept."""
    image = to_rgb(image)
    if size is not None:
        image = centre_square(resize_short(image, size), size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W) uint8
    return pixels.float() / 127.5 - 1


def to_square_tensor(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in [-1, 1] of a square PIL picture; UsageError for anything else."""
    if not isinstance(image, Image.Image):
        raise UsageError(f"expected a PIL picture, got {type(image).__name__}")
    if image.width != image.height:
        raise UsageError(f"the picture must be square, got {image.width} × {image.height}")
    return from_pil(image, size)


def to_mask_tensor(mask: Image.Image, of: Image.Image, size: int) -> Tensor:
    """(1, size, size), 1 where a mask is white and 0 where it is black; UsageError if it does not fit picture `of`."""
    if not isinstance(mask, Image.Image) or mask.mode not in ("1", "L"):
        got = f"mode {mask.mode}" if isinstance(mask, Image.Image) else type(mask).__name__
        raise UsageError(f"a mask is a PIL picture of one channel, mode 1 or L, got {got}")
    if mask.size != of.size:
        raise UsageError(f"the mask has {mask.width} × {mask.height} pixels, the picture {of.width} × {of.height}")
    white = torch.from_numpy(np.array(mask.convert("L").resize((size, size), Image.Resampling.NEAREST))) > 127
    return white[None].float()


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
    """(B, 3, H, W) in [-1, 1] → B PIL pictures; values outside are clamped.

    Raises:
        NonFiniteError: NaN or infinity, which would otherwise come out as black pixels.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"pictures must be (B, 3, H, W), got {tuple(x.shape)}")
    x = x.detach().float().cpu()
    if not x.isfinite().all():
        bad = [i for i, picture in enumerate(x) if not picture.isfinite().all()]
        raise NonFiniteError(f"pictures {bad} hold NaN or infinity")
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # (B, H, W, 3)
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
    """(B, 3, H, W) in [-1, 1] → one picture, row by row on white; `columns` defaults to a square arrangement."""
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
        UsageError: the file cannot be written. DataError: the disk is full.
    """
    _save(image, Path(path), "PNG", pnginfo=text_chunk(recipe))


def save_gif(pictures: Sequence[Image.Image], path: str | Path, seconds: float = 0.25) -> None:
    """Write pictures of one size as an endless animation, each for so many `seconds`; errors as in `save_png`."""
    _save(pictures[0], Path(path), "GIF", save_all=True, append_images=pictures[1:], duration=1000 * seconds, loop=0)


def _save(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary, kind, **options)
        os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (DataError if full else UsageError)(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
