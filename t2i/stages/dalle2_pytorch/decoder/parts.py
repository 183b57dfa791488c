"""What the U-Net of DALLE2-pytorch is made of: residual blocks with cross-attention inside, and two self-attentions.

B batch · C channels · H W pixels · P pixels of a picture, H·W · L tokens · S width of them · N heads · d head width
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Era = Literal["C", "D"]
"""C, 0.23.3 to 1.1.0, until 27 July 2022: self-attention scaled by 1/√d. D, from 1.4.3, 29 July: by 1/d, and a linear
attention of values of unit norm, divided by their number. Versions between are of neither: the self-attention of C, and
values divided by their number, normed in 1.4.0 to 1.4.2 alone."""
GROUPS = 8
CROSS_HEADS, CROSS_WIDTH = 8, 64


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel, with a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return F.layer_norm(x.movedim(1, -1), (len(self.weight),), self.weight).movedim(-1, 1)


class Attention(nn.Module):
    """x + attention(norm(x)) with one head of keys and values for all queries, and a learned pair of them."""

    def __init__(self, channels: int, heads: int, head_width: int, era: Era) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_width ** (-0.5 if era == "C" else -1.0)
        self.norm = nn.LayerNorm(channels, bias=False)
        self.null = nn.Parameter(torch.randn(2, head_width))
        self.q = nn.Linear(channels, heads * head_width, bias=False)
        self.kv = nn.Linear(channels, 2 * head_width, bias=False)
        self.proj = nn.Linear(heads * head_width, channels, bias=False)
        self.norm_out = nn.LayerNorm(channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        y = self.norm(x.flatten(2).transpose(1, 2))  # (B, P, C)
        q = rearrange(self.q(y), "b p (n d) -> b n p d", n=self.heads)
        k, v = _with_null(self.kv(y)[:, None].chunk(2, dim=-1), self.null)  # (B, 1, 1 + P, d)
        k, v = (z.expand(-1, self.heads, -1, -1) for z in (k, v))
        out = rearrange(F.scaled_dot_product_attention(q, k, v, scale=self.scale), "b n p d -> b p (n d)")
        return x + self.norm_out(self.proj(out)).transpose(1, 2).unflatten(2, x.shape[2:])


class LinearAttention(nn.Module):
    """x + linear attention: pixels ask a d × d summary of all pixels instead of each other (Shen et al. 2018)."""

    def __init__(self, channels: int, heads: int, head_width: int, era: Era) -> None:
        super().__init__()
        self.heads, self.era = heads, era
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * heads * head_width, 1, bias=False)
        self.proj = nn.Conv2d(heads * head_width, channels, 1, bias=False)
        self.norm_out = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (s n d) h w -> s b n (h w) d", s=3, n=self.heads)
        q, k = q.softmax(dim=-1) * q.shape[-1] ** -0.5, k.softmax(dim=-2)
        if self.era == "D":
            v = F.normalize(v, dim=-1) / v.shape[-2]
        out = rearrange(q @ (k.transpose(-1, -2) @ v), "b n (h w) d -> b (n d) h w", h=x.shape[2])
        return x + self.norm_out(self.proj(F.gelu(out)))


class CrossAttention(nn.Module):
    """x + attention from pixels to the tokens of the condition, and to a learned pair of key and value."""

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        inner = CROSS_HEADS * CROSS_WIDTH
        self.norm = nn.LayerNorm(channels, bias=False)
        self.null = nn.Parameter(torch.randn(2, CROSS_WIDTH))
        self.q = nn.Linear(channels, inner, bias=False)
        self.kv = nn.Linear(context_dim, 2 * inner, bias=False)
        self.proj = nn.Linear(inner, channels, bias=False)
        self.norm_out = nn.LayerNorm(channels, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W), (B, L, S) → (B, C, H, W)."""
        q = self.q(self.norm(x.flatten(2).transpose(1, 2)))  # (B, P, N·d)
        q, k, v = (rearrange(z, "b l (n d) -> b n l d", n=CROSS_HEADS) for z in (q, *self.kv(context).chunk(2, dim=-1)))
        out = F.scaled_dot_product_attention(q, *_with_null((k, v), self.null))
        out = self.norm_out(self.proj(rearrange(out, "b n p d -> b p (n d)")))
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class Block(nn.Module):
    """Convolution, group norm modulated by time, SiLU; the condition's tokens; convolution, group norm, SiLU; skip."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, out_channels)
        self.cross = CrossAttention(out_channels, context_dim) if context_dim is not None else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W), SiLU(time vector) (B, V), (B, L, S) → (B, C_out, H, W)."""
        scale, shift = self.time(time)[..., None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = h if self.cross is None else self.cross(h, context)
        return F.silu(self.norm2(self.conv2(h))) + self.skip(x)


class Down(nn.Module):
    """Half the resolution: by a strided 4 × 4 convolution, or (since August 2022) by folding 2 × 2 pixels."""

    def __init__(self, in_channels: int, out_channels: int, fold: bool) -> None:
        super().__init__()
        self.fold = fold
        conv = nn.Conv2d(4 * in_channels, out_channels, 1) if fold else nn.Conv2d(in_channels, out_channels, 4, 2, 1)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H/2, W/2)."""
        return self.conv(F.pixel_unshuffle(x, 2) if self.fold else x)


class Up(nn.Module):
    """Twice the resolution, by unfolding channels into 2 × 2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, 2H, 2W)."""
        return F.pixel_shuffle(F.silu(self.conv(x)), 2)


def _with_null(keys_values: tuple[Tensor, ...], null: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, N, L, d) with the learned pair (2, d) before them."""
    k, v = keys_values
    null_k, null_v = (x.expand(*k.shape[:2], 1, -1) for x in null)
    return torch.cat([null_k, k], dim=2), torch.cat([null_v, v], dim=2)
