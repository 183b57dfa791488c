"""The one U-Net: DDPM's shape, ADM's blocks, and three ports for conditions (Dhariwal & Nichol 2021; GLIDE 2021).

Legend: B batch · C channels · H W pixels · D width · p patch size.
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.sizes import Blocks, Channels
from t2i.core.types import Condition
from t2i.nn.attention import ImageAttention
from t2i.nn.encoder import Encoder, EncoderConfig
from t2i.nn.layers import GroupNorm, zero_module
from t2i.nn.resblock import ResBlock


class UNetConfig(EncoderConfig):
    """Everything that decides the shape and the numerics of a `UNet`: those of its way down, and what follows.

    Attributes:
        out_channels: of the raw output.
        fine_channels: with folded pixels, width of residual blocks at a finer resolution (`Fine`); 0 for none.
        fine_blocks, fine_patch: how many they are, and the pixels that they fold; less than `patch_size`.
    """

    out_channels: Channels = 6
    fine_channels: int = Field(default=0, ge=0, le=2**13)
    fine_blocks: Blocks = 1
    fine_patch: int = Field(default=1, ge=1, le=64)

    @model_validator(mode="after")
    def _check_fine(self) -> Self:
        p, finer = self.patch_size, self.fine_patch
        if self.fine_channels and (finer >= p or p % finer):
            raise ValueError(
                f"fine_channels={self.fine_channels} needs pixels folded less than the network's, "
                f"but patch_size={p} and fine_patch={finer}"
            )
        if self.fine_channels % (self.widths[0] // self.norm_groups):
            group = self.widths[0] // self.norm_groups
            raise ValueError(
                f"fine_channels={self.fine_channels} is not a multiple of {group}, the size of a norm's group"
            )
        return self


class Fine(nn.Module):
    """Residual blocks at a finer resolution, for what p x p pixels in few channels are too narrow to carry.

    They see the features of every cell, unfolded, and the network's input again, and start as nothing.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c, width, p = config, config.fine_channels, config.fine_patch
        groups = width * c.norm_groups // c.widths[0]  # as many channels to a group as elsewhere
        self.scale = c.patch_size // p
        self.unfold = nn.Conv2d(c.widths[0], width * self.scale**2, 1)
        self.conv_in = nn.Conv2d((c.in_channels + c.image_channels) * p * p, width, 3, padding=1)
        self.block, *more = (
            ResBlock(width, width, c.time_dim, scale_shift=c.scale_shift, norm_groups=groups, norm_eps=c.norm_eps)
            for _ in range(c.fine_blocks)
        )
        self.more: Any = nn.ModuleList(more)
        self.norm_out = GroupNorm(groups, width, eps=c.norm_eps)
        self.conv_out = zero_module(nn.Conv2d(width, c.out_channels * p * p, 3, padding=1))
        self.patch_size = p

    def forward(self, features: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H/p, W/p), the input (B, C_in, H, W) and the time vector (B, D) → (B, out_channels, H, W)."""
        x = F.pixel_unshuffle(x, self.patch_size)
        h = F.pixel_shuffle(self.unfold(features), self.scale) + self.conv_in(x)  # (B, width, H/q, W/q)
        for block in (self.block, *self.more):
            h = block(h, time)
        return F.pixel_shuffle(self.conv_out(self.norm_out(h, silu=True)), self.patch_size)


class UNet(Encoder):
    """`unet(x_t, t, condition) → raw output`; see `UNetConfig`."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, skips = config.widths, [config.widths[0]]
        for level, w in enumerate(widths):
            skips += [w] * (config.num_blocks + (level < len(widths) - 1))
        up, width = [], widths[-1]
        for level, w in reversed(list(enumerate(widths))):
            ins = [before + skips.pop() for before in [width] + [w] * config.num_blocks]
            up.append(self._level(level, ins, w, "up" if level > 0 else None))
            width = w
        self.up: Any = nn.ModuleList(up[::-1])  # by level, finest first, like `down`
        self.norm_out = GroupNorm(config.norm_groups, width, eps=config.norm_eps)
        self.conv_out = zero_module(nn.Conv2d(width, config.out_channels * config.patch_size**2, 3, padding=1))
        self.fine = Fine(config) if config.fine_channels else None

    def attentions(self) -> Iterator[ImageAttention]:
        yield from super().attentions()
        for level in reversed(self.up):
            yield from level.attentions

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """One evaluation of the network, with the arguments and errors of `Encoder.forward`.

        Returns:
            (B, out_channels, H, W), float32 even if the network or its autocast is not.
        """
        x, run = self._begin(x_t, t, condition)
        *skips, h = self._encode(x, run)
        for level in reversed(self.up):
            for i, module in enumerate(level.blocks):
                h = run.block(module, torch.cat([h, skips.pop()], dim=1))
                if level.attentions:
                    h = run.attend(level.attentions[i], h)
            if level.resample is not None:
                h = run.block(level.resample, h)
        h = self.norm_out(h.float(), silu=True)  # (B, C, H/p, W/p)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (p.float() for p in self.conv_out.parameters())
            out = F.pixel_shuffle(F.conv2d(h, weight, bias, padding=1), self.config.patch_size)  # (B, out, H, W)
        return out if self.fine is None else out + run.run(self.fine, h.to(x.dtype), x, run.time).float()
