"""Convolutional residual block and resamplers of the U-Net.

Legend: B batch · C channels · H W pixels · D width.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from t2i.nn.layers import GroupNorm, zero_module

Direction = Literal["up", "down"]
DownPadding = Literal["symmetric", "right_bottom"]


def _resample(x: Tensor, direction: Direction | None) -> Tensor:
    if direction == "down":
        return F.avg_pool2d(x, 2)  # (B, C, H/2, W/2)
    if direction == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")  # (B, C, 2H, 2W)
    return x


class ResBlock(nn.Module):
    """Two convolutions with a time vector between them (DDPM appendix B; scale-shift form of IDDPM and ADM).

    With `direction` both branches are resampled between the first SiLU and the first convolution (BigGAN, ADM).

    Args:
        in_channels, out_channels: widths; where they differ the residual goes through a 1x1 convolution.
        time_dim: width of the (already activated) time vector.
        scale_shift: modulate the second norm by the time vector, instead of adding the vector before it.
        direction: resample by two, or not.
        dropout: probability, before the last convolution.
        norm_groups, norm_eps: of both group norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int,
        *,
        scale_shift: bool = True,
        direction: Direction | None = None,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.scale_shift, self.direction, self.dropout = scale_shift, direction, dropout
        self.norm1 = GroupNorm(norm_groups, in_channels, eps=norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(norm_groups, out_channels, eps=norm_eps)
        self.conv2 = zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) and SiLU(time vector) (B, D) → (B, C_out, H', W')."""
        h = self.conv1(_resample(self.norm1(x, silu=True), self.direction))  # (B, C_out, H', W')
        if self.scale_shift:
            scale, shift = self.time(time).chunk(2, dim=1)  # (B, C_out) each
            h = self.norm2(h, scale, shift, silu=True)
        else:
            h = self.norm2(h + self.time(time).to(h.dtype)[:, :, None, None], silu=True)
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return self.skip(_resample(x, self.direction)) + h


class ConvResample(nn.Module):
    """Change the resolution by two with one convolution (DDPM, IDDPM): strided down, nearest neighbour then 3x3 up."""

    def __init__(self, channels: int, direction: Direction, padding: DownPadding = "symmetric") -> None:
        super().__init__()
        self.direction, self.padding = direction, padding
        down = direction == "down"
        pad = 0 if down and padding == "right_bottom" else 1
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=pad)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2) or (B, C, 2H, 2W); the time vector is not used."""
        if self.direction == "up":
            return self.conv(_resample(x, "up"))
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == "right_bottom" else x)
