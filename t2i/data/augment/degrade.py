"""What a small picture suffers before an upsampler is trained on it: blur, noise, JPEG.

unCLIP section 2.1 blurs for the 64→256 upsampler and uses a richer mix for 256→1024, so that an upsampler forgives what
the stage below it gets wrong. All chance comes from the sample's own stream.

B batch · C channels · H W pixels
"""

import io
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.io.images import to_pil


class Degradation(Config):
    """How to degrade, drawn anew for each sample. Called with pictures and their streams it gives the degraded ones.

    As it stands it is the blur of unCLIP's first upsampler, that of cascaded diffusion (Ho et al. 2021, arXiv
    2106.15282): 3 pixels wide, of standard deviation 0.6, half of the time. "bsr" and "bsr_light" are chains of their
    own, which begin at the large picture, see `t2i.data.augment.bsr`.
    """

    kind: Literal["blur", "bsr", "bsr_light"] = Field("blur", description="what follows, or a chain that is all drawn")
    blur: float = Field(0.5, ge=0, le=1, description="probability of a Gaussian blur")
    sigma: tuple[float, float] = Field((0.6, 0.6), description="range of its standard deviation, pixels")
    kernel: int = Field(3, ge=1, description="its odd width, pixels")
    noise: float = Field(0.0, ge=0, description="largest standard deviation of additive noise, on the scale of [-1, 1]")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of a JPEG round trip")
    quality: tuple[int, int] = Field((30, 95), description="range of its quality")

    @model_validator(mode="after")
    def _check(self) -> "Degradation":
        if self.kind != "blur" and (given := sorted(self.model_fields_set - {"kind"})):
            raise ValueError(f"kind={self.kind!r} draws all by laws of its own; leave {', '.join(given)} away")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma must be a range of positive numbers, got {self.sigma}")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"quality must be a range within 1 … 100, got {self.quality}")
        return self

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        """(B, C, H, W) in [-1, 1] → the same shape and range, on its device.

        Every sample draws the same numbers in the same order whatever the settings, so switching one kind of damage off
        leaves the others as they were.
        """
        assert self.kind == "blur"
        if len(streams) != len(x):
            raise ValueError(f"{len(x)} pictures need as many streams, got {len(streams)}")
        chance = streams.uniform(5)  # (B, 5)
        if self.blur:
            sigma = self.sigma[0] + chance[:, 1] * (self.sigma[1] - self.sigma[0])
            blurred = gaussian_blur(x, upload(sigma, x.device), self.kernel)
            x = torch.where(upload(chance[:, 0] < self.blur, x.device)[:, None, None, None], blurred, x)
        noise = streams.normal(*x.shape[1:])
        if self.noise:
            x = (x + upload(self.noise * chance[:, 2, None, None, None] * noise, x.device).to(x)).clamp(-1, 1)
        if self.jpeg:
            low, high = self.quality
            quality = (low + chance[:, 4] * (high - low + 1)).long().clamp(max=high)
            chosen = chance[:, 3] < self.jpeg
            x = jpeg(x, torch.where(chosen, quality, 0))
        return x


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur (B, C, H, W) with one standard deviation per picture, (B,) pixels; edges are reflected."""
    B, C, H, W = x.shape
    if kernel // 2 >= min(H, W):
        raise ValueError(f"a blur of width {kernel} needs larger pictures, got {H}×{W}")
    offsets = torch.arange(kernel, device=x.device) - kernel // 2
    weights = torch.exp(-offsets.square() / (2 * sigma.float()[:, None].square()))  # (B, K)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype).repeat_interleave(C, 0)
    half = kernel // 2
    y = F.pad(x, (half, half, half, half), mode="reflect").reshape(1, B * C, H + 2 * half, W + 2 * half)
    y = F.conv2d(y, weights[:, None, None, :], groups=B * C)  # along W
    y = F.conv2d(y, weights[:, None, :, None], groups=B * C)  # along H
    return y.reshape(B, C, H, W)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Encode and decode each of (B, C, H, W) in [-1, 1] as JPEG of its `quality` (B,), 1 … 100; 0 leaves it alone.

    JPEG is made on the CPU: on a GPU this waits for the chosen pictures, which are fetched together, once a call.
    """
    rows = quality.nonzero()[:, 0].cpu()  # (R,)
    if not len(rows):
        return x
    decoded = []
    index = upload(rows, x.device)
    for image, level in zip(to_pil(x[index]), quality[rows].tolist(), strict=True):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=level)
        again = np.array(Image.open(buffer, formats=["JPEG"])).reshape(image.height, image.width, -1)
        decoded.append(torch.from_numpy(again))  # (H, W, C) uint8
    pixels = torch.stack(decoded).permute(0, 3, 1, 2).float() / 127.5 - 1  # (R, C, H, W)
    return x.index_copy(0, index, upload(pixels.contiguous(), x.device).to(x))
