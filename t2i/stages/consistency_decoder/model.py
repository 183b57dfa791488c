"""The consistency decoder's network: one U-Net that sees noisy pixels beside the latents, enlarged.

B batch · C channels of latents · h w places of latents · H W pixels
"""

from math import lcm
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.sizes import Side
from t2i.core.types import Condition
from t2i.diffusion.consistency import Consistency, Scaled
from t2i.nn.unet import UNet, UNetConfig


class LatentsConfig(Config):
    """The latents that a decoder reads, as its autoencoder gives them: of about unit variance."""

    channels: int = Field(4, ge=1, le=64, description="C; follows from autoencoder=FOLDER")
    factor: Side = Field(8, description="pixels of a side that share a place; follows from autoencoder=FOLDER")
    mean: tuple[float, ...] = Field((), description="of every channel, taken off; () for none")
    std: tuple[float, ...] = Field((), description="of every channel, divided by; () for 1")
    scaling: float | None = Field(
        None, gt=0, description="factor of the autoencoder's latents, by which it is known where it has no fingerprint"
    )
    fingerprint: tuple[float, ...] = Field((), description="of the autoencoder; follows from autoencoder=FOLDER")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                raise ValueError(f"{len(values)} values of latents.{name}, but latents.channels={self.channels}")
        if bad := [value for value in self.std if value <= 0]:
            raise ValueError(f"latents.std must be above 0, got {bad[0]}")
        return self


class ConsistencyDecoderConfig(Config):
    """Everything about a consistency decoder."""

    unet: UNetConfig = Field(
        description="image_channels are those of the latents; of out_channels the first 3 are used, and others were "
        "left over from a learned variance"
    )
    diffusion: Consistency = Field(Consistency(), description="what it was trained on")
    latents: LatentsConfig = Field(LatentsConfig(), description="what it reads")
    image_size: Side = Field(256, description="side of whole pictures, in pixels; it takes others as well")

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, num_steps = self.unet, self.diffusion.num_steps
        if unet.image_channels != self.latents.channels:
            raise ValueError(
                f"unet.image_channels={unet.image_channels} must be latents.channels={self.latents.channels}"
            )
        if unet.out_channels < unet.in_channels:
            raise ValueError(f"unet.out_channels={unet.out_channels} must be {unet.in_channels} at least")
        if unet.time_table is not None and (unet.time_table < num_steps or self.diffusion.rescale_timesteps):
            raise ValueError(
                f"unet.time_table={unet.time_table} must have a row for each of diffusion.num_steps={num_steps} steps, "
                "which are not rescaled"
            )
        if unet.context_dim is not None:
            raise ValueError(f"unet.context_dim={unet.context_dim}, but a consistency decoder reads no tokens")
        if self.image_size % self.fold:
            raise ValueError(f"image_size={self.image_size} must be a multiple of {self.fold}")
        return self

    @property
    def fold(self) -> int:
        """Pixels that every side is a multiple of."""
        return lcm(self.unet.factor, self.latents.factor)


class ConsistencyDecoder(nn.Module):
    """`decoder(c_in · x_t, t, decoder.condition(latents)) → F`; `decoder.estimate` makes pictures of that."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor

    def __init__(self, config: ConsistencyDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        c = config.latents
        for name, values, otherwise in (("mean", c.mean, 0.0), ("std", c.std, 1.0)):  # of the config: not saved again
            rows = torch.tensor(values or [otherwise] * c.channels)
            self.register_buffer(name, rows[:, None, None], persistent=False)

    def forward(self, scaled: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """c_in · x_t (B, 3, H, W) and timesteps (B,) → F (B, out_channels, H, W); see `UNet.forward`."""
        out: Tensor = self.unet(scaled, t, condition)
        return out

    def condition(self, latents: Tensor) -> Condition:
        """Latents (B, C, h, w), standardised and enlarged to pixels.

        Raises UsageError for latents of another number of channels, or of sides that the network cannot fold.
        """
        c = self.config
        if latents.ndim != 4 or latents.shape[1] != c.latents.channels:
            raise UsageError(f"latents are of shape {tuple(latents.shape)}, expected (B, {c.latents.channels}, h, w)")
        sides = [side * c.latents.factor for side in latents.shape[2:]]
        if any(side == 0 or side % c.fold for side in sides):
            raise UsageError(
                f"latents {latents.shape[2]} × {latents.shape[3]} are pictures of {sides[0]} × {sides[1]} pixels, "
                f"which must be multiples of {c.fold}"
            )
        image = (latents.float() - self.mean) / self.std
        return Condition(image=F.interpolate(image, scale_factor=float(c.latents.factor), mode="nearest"))

    @property
    def estimate(self) -> Scaled:
        """Of x_0 from x_t."""
        diffusion = self.config.diffusion
        return Scaled(self, diffusion.process(), diffusion.sigma_data)
