"""The upsampler network: one U-Net that sees x_t beside the small picture, enlarged.

B batch · H W pixels, large · h w pixels, small
"""

from dataclasses import replace
from math import gcd
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.sizes import Side
from t2i.core.types import Condition
from t2i.diffusion.config import Diffusion, diffusion_section
from t2i.nn.older import ports_section
from t2i.nn.ports import Given, PortsConfig
from t2i.nn.unet import UNet, UNetConfig

PORTS = ("text", "classes", "masked")
"""What an upsampler may be conditioned on beside the small picture."""


class UpsamplerConfig(Config):
    """Everything about an upsampler."""

    unet: UNetConfig = Field(description="image_channels are the 3 of the small picture, and 4 more to inpaint")
    diffusion: Diffusion = Field(Diffusion(schedule="linear"), description="what it was trained on")
    ports: PortsConfig = Field(
        PortsConfig(), description="text, classes, masked: what it sees beside the small picture"
    )
    low_size: Side = Field(64, description="side of whole small pictures")
    image_size: Side = Field(256, description="of large ones; their ratio is the magnification")
    levels: Literal["rounded", "truncated", "exact"] = Field(
        "rounded",
        description="how small pictures become 8 bits in sampling: rounded as in GLIDE, truncated as ADM writes its "
        "pictures, or not at all, so that no difference is too small to stay small",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="of the small picture, to be enlarged"
    )
    antialias: bool = Field(False, description="of that interpolation")
    residual: bool = Field(False, description="predict what x_0 has beyond the enlarged picture; for target x0")
    last_step: bool = Field(False, description="another network of the same shape takes the last step (Karlo)")

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return ports_section(diffusion_section(data))

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, wanted, masked = (
            self.unet,
            self.diffusion.num_outputs(self.unet.in_channels),
            self.ports.masked is not None,
        )
        if unet.out_channels != wanted:
            raise ValueError(
                f"variance {self.diffusion.variance!r} needs unet.out_channels={wanted}, got {unet.out_channels}"
            )
        if others := [name for name in self.ports.names if name not in PORTS]:
            raise ValueError(f"ports.{others[0]} is not for upsamplers, which have {', '.join(PORTS)}")
        if unet.image_channels != unet.in_channels + 4 * masked:
            raise ValueError(
                f"unet.image_channels={unet.image_channels} must be {unet.in_channels} of the small picture"
                f"{' and 4 of the masked one' if masked else ''}"
            )
        if self.residual and self.diffusion.target != "x0":
            raise ValueError(f"residual=True needs target 'x0', got {self.diffusion.target!r}")
        if self.image_size % self.low_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of low_size={self.low_size}")
        if unet.context_dim is not None and self.ports.text is None:
            raise ValueError(f"unet.context_dim={unet.context_dim} does not fit ports.text=None")
        self.ports.check(unet.context_dim)
        if self.last_step and (self.residual or self.ports.names):
            raise ValueError("last_step=True is for networks that see a small picture alone, and predict no residual")
        if self.ports.text is not None and not self.ports.text.attend_padding:
            raise ValueError("text.attend_padding=False is not for upsamplers, whose text is GLIDE's")
        return self

    @property
    def magnification(self) -> int:
        """Pixels of the large picture per pixel of the small one, along a side."""
        return self.image_size // self.low_size


class Upsampler(nn.Module):
    """`upsampler(x_t, t, upsampler.condition(low_res)) → raw output`, at any size if the U-Net has no attention."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.last = UNet(config.unet) if config.last_step else None
        self.ports = config.ports.build(config.unet.time_dim, config.unet.context_dim)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, 3, H, W) and timesteps (B,) → (B, out_channels, H, W); see `UNet.forward`."""
        out: Tensor = self.unet(x_t, t, condition)
        if self.config.residual:
            assert condition.image is not None
            enlarged = condition.image[:, -x_t.shape[1] :]
            out = out + F.pad(enlarged, (0, 0, 0, 0, 0, out.shape[1] - x_t.shape[1]))  # not the variance
        return out

    def enlarge(self, low_res: Tensor) -> Tensor:
        """(B, 3, h, w) → (B, 3, H, W) by the magnification of the config, corners not aligned."""
        c = self.config
        return F.interpolate(
            low_res,
            scale_factor=float(c.magnification),
            mode=c.interpolation,
            align_corners=False,
            antialias=c.antialias,
        )

    def condition(self, low_res: Tensor, given: Given | None = None) -> Condition:
        """What the network is conditioned on (ADM, section 4.3; GLIDE, section 3.1).

        Args:
            low_res: (B, 3, h, w) in [-1, 1]; a whole picture or a crop.
            given: text, classes and a masked large picture (B, 3, H, W), where the network has ports for them.

        Returns:
            `image` (B, 3 or 7, H, W), the masked picture before the small one, with what the other ports give.

        Raises ValueError for what has no port here, for labels or captions that are missing, and UsageError for
        pictures of another shape, or of sides that the network cannot fold.
        """
        c, channels = self.config, self.config.unet.in_channels
        if low_res.ndim != 4 or low_res.shape[1] != channels:
            raise UsageError(f"low_res has the shape {tuple(low_res.shape)}, expected (B, {channels}, h, w)")
        if min(sides := low_res.shape[2:]) < 1 or any(side * c.magnification % c.unet.factor for side in sides):
            step = c.unet.factor // gcd(c.unet.factor, c.magnification)
            raise UsageError(f"low_res is {sides[0]} × {sides[1]}, but its sides must be multiples of {step}")
        image = self.enlarge(low_res)
        given = given if given is not None else Given(len(low_res))
        if self.config.ports.text is not None and given.text is None:
            raise ValueError("text missing: this upsampler reads the caption")
        cond = self.ports.read(given, (image.shape[2], image.shape[3]), image.device)
        if cond.image is not None and cond.image.shape[2:] != image.shape[2:]:
            raise UsageError(f"the masked picture is {tuple(cond.image.shape[2:])}, the large {tuple(image.shape[2:])}")
        return replace(cond, image=image if cond.image is None else torch.cat([cond.image, image], dim=1))

    def project(self, condition: Condition) -> Condition:
        """See `UNet.project`: do this once before sampling, so that every step reuses the keys and values."""
        return self.unet.project(condition)
