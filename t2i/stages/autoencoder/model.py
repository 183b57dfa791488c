"""The KL autoencoder of latent diffusion: pictures to a small grid of latents, and back (Rombach et al. 2022, arXiv
2112.10752, section 3.1).

B batch · C channels of the latents · H W pixels · h w places of the latents · f pixels of a side that share a place ·
p patch size · D channels of features
"""

import math
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.sizes import MAX_LEVELS, Blocks, Channels, Multiplier, Side
from t2i.nn.attention import ImageAttention
from t2i.nn.layers import GroupNorm, zero_module
from t2i.nn.resblock import ConvResample, Direction

_PRINT = 15  # numbers of a fingerprint that are latents


class AutoencoderConfig(Config):
    """Everything about an autoencoder; the defaults are those of KL-f8."""

    channels: Channels = Field(128, description="of the features at the finest level")
    multipliers: tuple[Multiplier, ...] = Field(
        (1, 2, 4, 4),
        min_length=1,
        max_length=MAX_LEVELS,
        description="channels of every level over `channels`, finest first; from one to the next sides are halved",
    )
    num_blocks: Blocks = Field(2, description="residual blocks of a level of the encoder; the decoder has one more")
    z_channels: Channels = Field(4, description="channels between encoder and decoder")
    embed_dim: Channels = Field(4, description="channels of the latents; others than z_channels need quant_convs")
    quant_convs: bool = Field(True, description="1 × 1 convolutions after the encoder and before the decoder")
    attention: tuple[Side, ...] = Field(
        (), max_length=MAX_LEVELS, description="attend at these factors of down-sampling of the network's own grid"
    )
    mid_attention: bool = Field(True, description="attend in the middle; the network is convolutional without")
    patch_size: int = Field(
        1, ge=1, le=64, description="p × p pixels are folded into channels before the first convolution"
    )
    norm_groups: Channels = Field(32, description="of every group norm")
    norm_eps: float = Field(1e-6, ge=0, le=1, description="of every group norm")
    image_size: Side = Field(256, description="side of the pictures it is for, in pixels; it takes others")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(round(m * self.channels) for m in self.multipliers)

    @property
    def factor(self) -> int:
        """Pixels of a side that share a place of the latents."""
        return int(self.patch_size * 2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        factors = [2**level for level in range(len(self.multipliers))]
        if unknown := set(self.attention) - set(factors):
            raise ValueError(f"attention at factors {sorted(unknown)}, but the levels have factors {factors}")
        if bad := [w for w in self.widths if w == 0 or w % self.norm_groups]:
            raise ValueError(f"level widths {bad} are not positive multiples of norm_groups={self.norm_groups}")
        if not self.quant_convs and self.embed_dim != self.z_channels:
            raise ValueError(f"without quant_convs embed_dim={self.embed_dim} must equal z_channels={self.z_channels}")
        if self.image_size % self.factor:
            raise ValueError(f"image_size={self.image_size} is not a multiple of {self.factor}, which share a place")
        return self


class Posterior(NamedTuple):
    """q(z | x), a normal distribution for each of the latents: `mean` and `logvar` (B, C, h, w), float32."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Self:
        """(B, 2C, h, w) → the distribution; log variances are clamped to [-30, 20]."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30, 20))

    def sample(self, noise: Tensor) -> Tensor:
        """(B, C, h, w) from standard normal noise of that shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) = ½ Σ (μ² + σ² - 1 - log σ²), (B,), summed over all latents of a picture."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(dim=1)


class Block(nn.Module):
    """Two 3 × 3 convolutions beside the identity, or beside a 1 × 1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, eps = config.norm_groups, config.norm_eps
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D_out, H, W)."""
        h = self.conv1(self.norm1(x, silu=True))
        return self.skip(x) + self.conv2(self.norm2(h, silu=True))


class Level(nn.Module):
    """One resolution: blocks, attention after each or none, then a resampler or none."""

    def __init__(self, ins: list[int], level: int, direction: Direction | None, config: AutoencoderConfig) -> None:
        super().__init__()
        width, attends = config.widths[level], 2**level in config.attention
        self.blocks = nn.ModuleList(Block(channels, width, config) for channels in ins)
        self.attentions = nn.ModuleList(_attention(width, config) for _ in ins if attends)
        self.resample = None if direction is None else ConvResample(width, direction, "right_bottom")

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D_out, H', W')."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Module):
    """Block, attention or none, block, at the coarsest resolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.block1 = Block(width, width, config)
        self.attention = _attention(width, config) if config.mid_attention else None
        self.block2 = Block(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) → (B, D, h, w)."""
        x = self.block1(x)
        return self.block2(x if self.attention is None else self.attention(x))


def _attention(width: int, config: AutoencoderConfig) -> ImageAttention:
    """With one head, as published."""
    return ImageAttention(width, 1, None, norm_groups=config.norm_groups, norm_eps=config.norm_eps)


class Encoder(nn.Module):
    """`encoder(image) → moments before the quant convolution`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, widths = config, config.widths
        self.patch_size, last = c.patch_size, len(widths) - 1
        self.conv_in = nn.Conv2d(3 * c.patch_size**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level([before] + [width] * (c.num_blocks - 1), level, "down" if level < last else None, c)
            for level, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid = Middle(c)
        self.norm_out = GroupNorm(c.norm_groups, widths[-1], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], 2 * c.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 2 z_channels, H/f, W/f)."""
        x = self.conv_in(F.pixel_unshuffle(image, self.patch_size))  # (B, D, H/p, W/p)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x), silu=True))


class Decoder(nn.Module):
    """`decoder(z) → image`, where z comes from the post-quant convolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, widths = config, config.widths
        self.patch_size = c.patch_size
        self.conv_in = nn.Conv2d(c.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(c)
        self.up = nn.ModuleList(  # by level, finest first, like `down`
            Level([before] + [width] * c.num_blocks, level, "up" if level > 0 else None, c)
            for level, (width, before) in enumerate(zip(widths, (*widths[1:], widths[-1]), strict=True))
        )
        self.norm_out = GroupNorm(c.norm_groups, widths[0], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], 3 * c.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) → (B, 3, h · f, w · f), float32 even if the network or its autocast is not."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = self.norm_out(x.float(), silu=True)  # (B, D, H/p, W/p)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.conv_out.weight.float(), self.conv_out.bias
            assert bias is not None
            return F.pixel_shuffle(F.conv2d(x, weight, bias.float(), padding=1), self.patch_size)


class Autoencoder(nn.Module):
    """`posterior(image)` and `decode(z)` are the network's own; `encode_latents` and `decode_latents` are what other
    stages see (protocol `LatentCodec`): latents of about unit variance.

    `shift` and `scale` (C,) are what was measured of its latents: (z - shift) · scale are those of other stages.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.channels, self.factor = c.embed_dim, c.factor
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv: Any = nn.Identity()
        self.post_quant_conv: Any = nn.Identity()
        if c.quant_convs:
            self.quant_conv = nn.Conv2d(2 * c.z_channels, 2 * c.embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(c.embed_dim, c.z_channels, 1)
        self.register_buffer("shift", torch.zeros(c.embed_dim))
        self.register_buffer("scale", torch.ones(c.embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) through the mean of their latents, and back."""
        return self.decode(self.posterior(image).mean)

    def posterior(self, image: Tensor) -> Posterior:
        """(B, 3, H, W) in [-1, 1] → the distribution of its latents (B, C, H/f, W/f), neither shifted nor scaled.

        Raises UsageError for sides that are not multiples of `factor`.
        """
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise UsageError(
                f"pictures of {width} × {height} pixels have no latents: {self.factor} × {self.factor} share a place, "
                f"so sides must be multiples of {self.factor}"
            )
        return Posterior.of(self.quant_conv(self.encoder(image.to(self.encoder.conv_in.weight.dtype))))

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w), neither shifted nor scaled → (B, 3, h · f, w · f) about in [-1, 1], float32.

        Raises UsageError for latents of another number of channels.
        """
        self._check_latents(z)
        return self.decoder(self.post_quant_conv(z.to(self.decoder.conv_in.weight.dtype)))

    def encode_latents(self, image: Tensor) -> Tensor:
        """The mean of `posterior`, shifted and scaled to about unit variance, (B, C, H/f, W/f)."""
        return (self.posterior(image).mean - self.shift[:, None, None]) * self.scale[:, None, None]

    def decode_latents(self, latents: Tensor) -> Tensor:
        """`decode` of latents as `encode_latents` gives them."""
        self._check_latents(latents)
        return self.decode(latents.float() / self.scale[:, None, None] + self.shift[:, None, None])

    def _check_latents(self, z: Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise UsageError(
                f"latents of shape {tuple(z.shape)}, but this autoencoder's are (B, {self.channels}, h, w)"
            )

    @torch.no_grad()
    def measure(self, z: Tensor, share: float = 1.0) -> None:
        """Take mean and spread of latents (B, C, h, w), neither shifted nor scaled, into `shift` and `scale`.

        Args:
            share: how much these latents count beside those before; 1 for all.
        """
        z = z.detach().float()
        self.shift.lerp_(z.mean(dim=(0, 2, 3)), share)
        variance = (z - self.shift[:, None, None]).square().mean(dim=(0, 2, 3))
        self.scale.copy_(torch.lerp(self.scale**-2, variance, share).clamp(min=1e-12).rsqrt())

    @torch.no_grad()
    def fingerprint(self) -> tuple[float, ...]:
        """Latents of a picture that is always the same, and a constant, beside which another scale shows: by these
        numbers stages recognise the autoencoder that they were trained with."""
        line = torch.linspace(-1, 1, 4 * self.factor, device=self.scale.device)
        y, x = torch.meshgrid(line, line, indexing="ij")
        image = torch.stack([x, y, (math.pi * x).sin() * (math.pi * y).cos()])[None]  # (1, 3, 4f, 4f)
        latents = self.encode_latents(image).flatten()
        numbers = latents[:: max(1, len(latents) // _PRINT)][:_PRINT].tolist()
        return (*(round(value, 4) for value in numbers), math.sqrt(_PRINT + 1))
