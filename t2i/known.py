"""Pictures that users bring along: what of them stays, or from where drawing begins.

B pictures of a batch · S side of the result in pixels
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from t2i.diffusion.inpaint import keep_known
from t2i.errors import UsageError
from t2i.images import pasted, square, square_mask


@dataclass(frozen=True)
class Known:
    """A picture of which a part stays.

    `picture` (3, S, S) in [-1, 1]; `fresh` (1, S, S), 1 where it is drawn anew; `base`, the side of the first network
    that draws, whose places the masks of larger ones have too, as in GLIDE.
    """

    picture: Tensor
    fresh: Tensor
    base: int
    blend: float

    def to(self, device: torch.device) -> "Known":
        """On a device."""
        return replace(self, picture=self.picture.to(device), fresh=self.fresh.to(device))

    def at(self, size: int, num: int) -> tuple[Tensor, Tensor]:
        """What a network that draws `size` pixels may know, for `num` pictures: (B, 3, size, size) and a mask
        (B, 1, size, size), 1 where it is known. A place that is fresh in part is not."""
        picture = F.interpolate(self.picture[None], size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        kept = F.interpolate(1 - F.adaptive_max_pool2d(self.fresh[None], self.base), size=size, mode="nearest")
        return picture.expand(num, -1, -1, -1), kept.expand(num, -1, -1, -1)

    def processed(self, size: int, num: int) -> Callable[[Tensor], Tensor]:
        """For `Steering`: writes what is known into every predicted x_0."""
        return keep_known(*self.at(size, num))

    def paste(self, x: Tensor) -> Tensor:
        """New pictures (B, 3, S, S) where fresh, the old one elsewhere, to the bit."""
        return pasted(x.cpu(), self.picture.cpu(), self.fresh.cpu(), self.blend)


@dataclass(frozen=True)
class Start:
    """A picture (3, s, s) in [-1, 1] to begin from instead of noise, and the share of the steps that follow, 0…1."""

    picture: Tensor
    strength: float

    def to(self, device: torch.device) -> "Start":
        """On a device."""
        return replace(self, picture=self.picture.to(device))


def read_known(image: Image, mask: Image, *, size: int, base: int, blend: float) -> Known:
    """Check what a user brings to inpaint; UsageError for what cannot be."""
    if isinstance(blend, bool) or not isinstance(blend, int | float) or not 0 <= blend <= size:
        raise UsageError(f"blend must be a number of pixels from 0 to {size}, got {blend!r}")
    return Known(square(image, size), square_mask(mask, image, size), base, float(blend))


def read_start(image: Image, strength: float, size: int) -> Start:
    """Check what a user brings to edit; UsageError for what cannot be."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise UsageError(f"strength must be a number from 0 to 1, got {strength!r}")
    return Start(square(image, size), float(strength))
