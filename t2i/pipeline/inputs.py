"""Pictures that users give to a call: what of them stays, or from where drawing begins.

B pictures of a batch · S side of the result in pixels · N pictures · s side of the decoder's · D width of embeddings
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError, lacks_memory, quoted
from t2i.core.paths import path_of
from t2i.diffusion.inpaint import keep_known
from t2i.io.decode import damage_of, decoded, unreadable
from t2i.io.images import composite, open_image, to_square_tensor, upright
from t2i.io.masks import hole, open_mask, to_mask_tensor
from t2i.pipeline.arguments import share

Picture = Image | Path | str
"""A PIL picture, or the path of a file."""
MAX_EMBEDDINGS = 1_000_000
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class InpaintInput:
    """A picture of which a part stays.

    `picture` (3, S, S) in [-1, 1]; `fresh` (1, S, S), 1 where it is drawn anew; `base`, the side of the first network
    that draws, on whose pixels the masks of larger ones are laid too, as in GLIDE; `shown`, whether networks that
    inpaint see what stays.
    """

    picture: Tensor
    fresh: Tensor
    base: int
    blend: float
    shown: bool = True

    def to(self, device: torch.device) -> "InpaintInput":
        """On a device."""
        return replace(self, picture=self.picture.to(device), fresh=self.fresh.to(device))

    def at(self, size: int, num: int) -> tuple[Tensor, Tensor]:
        """What a network that draws `size` pixels may know, for `num` pictures: (B, 3, size, size) and a mask
        (B, 1, size, size), 1 where it is known. A place that is fresh in part is not."""
        picture = F.interpolate(self.picture[None], size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        kept = F.interpolate(1 - F.adaptive_max_pool2d(self.fresh[None], self.base), size=size, mode="nearest")
        return picture.expand(num, -1, -1, -1), kept.expand(num, -1, -1, -1)

    def processed(self, size: int, num: int) -> Callable[[Tensor], Tensor]:
        """For `Hooks`: writes what is known into every predicted x_0."""
        return keep_known(*self.at(size, num))

    def paste(self, x: Tensor) -> Tensor:
        """New pictures (B, 3, S, S) where fresh, the old one elsewhere, to the bit."""
        return composite(x.cpu(), self.picture.cpu(), self.fresh.cpu(), self.blend)


@dataclass(frozen=True)
class EditInput:
    """A picture (3, s, s) in [-1, 1] to begin from instead of noise, and the share of the steps that follow, 0…1."""

    picture: Tensor
    strength: float

    def to(self, device: torch.device) -> "EditInput":
        """On a device."""
        return replace(self, picture=self.picture.to(device))


@dataclass(frozen=True)
class Latent:
    """Pictures taken apart (Ramesh et al. 2022, section 3): `z_i` (N, D), the CLIP embeddings that say what they show,
    and `x_T` (N, 3, s, s), the noise from which the decoder, told z_i, comes back to them. Both float32, on the CPU."""

    z_i: Tensor
    x_T: Tensor

    def __repr__(self) -> str:
        return f"Latent(z_i={tuple(self.z_i.shape)}, x_T={tuple(self.x_T.shape)})"

    def __len__(self) -> int:
        return len(self.z_i)

    def __getitem__(self, rows: slice) -> "Latent":
        return Latent(self.z_i[rows], self.x_T[rows])

    def repeat_each(self, num: int) -> "Latent":
        """Every picture `num` times in a row."""
        return Latent(self.z_i.repeat_interleave(num, 0), self.x_T.repeat_interleave(num, 0))

    def check(self, dim: int, size: int, unit_norm: bool) -> "Latent":
        """Itself, if it is one of a model with embeddings of this width and pictures of this side; or UsageError."""
        check_dense("z_i", self.z_i)
        check_dense("x_T", self.x_T)
        num = len(self.z_i) if self.z_i.ndim else 0
        if num == 0 or self.z_i.shape != (num, dim) or self.x_T.shape != (num, 3, size, size):
            raise UsageError(
                f"z_i {tuple(self.z_i.shape)} and x_T {tuple(self.x_T.shape)} are not this model's, which are "
                f"(N, {dim}) and (N, 3, {size}, {size})"
            )
        if not self.x_T.isfinite().all():
            raise UsageError("x_T holds NaN or infinity")
        return Latent(read_embeddings(self.z_i, dim, unit_norm), self.x_T.detach().float().cpu())


def read_embeddings(z_i: Any, dim: int, unit_norm: bool) -> Tensor:
    """Embeddings (N, D), float32 on the CPU, if they have this width and length; or UsageError."""
    if not isinstance(z_i, Tensor):
        raise UsageError(f"embeddings of this model are (N, {dim}), got {type(z_i).__name__}")
    check_dense("embeddings", z_i)
    if z_i.ndim != 2 or len(z_i) == 0 or z_i.shape[1] != dim:
        raise UsageError(f"embeddings of this model are (N, {dim}), got {tuple(z_i.shape)}")
    if len(z_i) > MAX_EMBEDDINGS:
        raise UsageError(f"{len(z_i):,} embeddings, more than {MAX_EMBEDDINGS:,}")
    z_i = z_i.detach().float().cpu()
    if not z_i.isfinite().all():
        raise UsageError("an embedding z_i holds NaN or infinity")
    length = z_i.norm(dim=1)
    worst = float(length[(length - 1).abs().argmax()])
    if unit_norm and abs(worst - 1) > 1e-2:
        raise UsageError(f"embeddings of this model have length 1, but there is a z_i of length {worst:.3g}")
    return z_i


def check_dense(what: str, x: Any) -> None:
    """UsageError for anything but a tensor of floats that has its numbers at hand."""
    if not isinstance(x, Tensor):
        raise UsageError(f"{what} must be a tensor, got {type(x).__name__}")
    kind = "meta" if x.is_meta else "nested" if x.is_nested else str(x.layout if x.dtype in _FLOATS else x.dtype)
    if kind != str(torch.strided):
        raise UsageError(f"{what} must be a dense tensor of floats, got a {kind.removeprefix('torch.')} one")


def read_pictures(image: Any) -> list[Image]:
    """One picture or several, PIL or the path of a file, as PIL; UsageError for anything else."""
    given = list(image) if isinstance(image, Sequence) and not isinstance(image, str) else [image]
    if not given:
        raise UsageError("no picture given")
    for one in given:
        if not isinstance(one, Image | Path | str):
            raise UsageError(f"expected a PIL picture or the path of one, got {type(one).__name__}")
    return [
        check_picture(one) if isinstance(one, Image) else open_image(path_of(one, "a picture"), keep_alpha=True)
        for one in given
    ]


def check_picture(image: Any, what: str = "picture") -> Image:
    """A PIL picture that has pixels, decoded; UsageError for anything else."""
    if not isinstance(image, Image):
        raise UsageError(f"expected a PIL picture, got {type(image).__name__}")
    try:
        image.load()
        if (why := unreadable(image)) is None:
            image.getpixel((0, 0))  # of a closed one there is none
    except Exception as error:  # decoders raise all sorts
        if lacks_memory(error):
            raise
        raise UsageError(f"the {what} cannot be read: {' '.join(str(error).split())}") from error
    if why is not None:
        raise UsageError(f"the {what} {why}")
    return image


def read_inpaint(image: Picture, mask: Picture | None, *, size: int, base: int, blend: float) -> InpaintInput:
    """What a user gives to inpaint, checked; UsageError for what cannot be."""
    if isinstance(blend, bool) or not isinstance(blend, int | float) or not 0 <= blend <= size:
        raise UsageError(f"blend must be a number of pixels from 0 to {size}, got {quoted(blend)}")
    file = path_of(image, "a picture") if isinstance(image, Path | str) else None
    (stored,) = read_pictures([image if file is None else decoded(file)])
    with damage_of(file or "the picture"):
        picture = upright(stored)
    if mask is None:
        if hole(picture) is None:
            raise UsageError("no mask, and nothing in the picture is transparent: which part is to be drawn anew?")
        mask = stored = picture
    given = open_mask(path_of(mask, "a mask")) if isinstance(mask, Path | str) else mask
    if isinstance(given, Image):
        check_picture(given, "mask")
    known = to_square_tensor(picture, size)
    return InpaintInput(known, to_mask_tensor(given, stored, size, as_shown=file is not None), base, float(blend))


def read_edit(image: Picture, strength: float, size: int) -> EditInput:
    """What a user gives to edit, checked; UsageError for what cannot be."""
    (picture,) = read_pictures([image])
    return EditInput(to_square_tensor(picture, size), share("strength", strength))
