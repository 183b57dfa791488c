"""Multi-head attention, for pictures and for sequences.

Legend: B batch · C channels · H W pixels · L tokens · D width · N heads · d head width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.core.types import KeysValues
from t2i.nn.layers import POSITION_OCTAVES, GroupNorm, fit, pixel_positions, zero_module

MATMUL_MAX_KEYS = 128
"""In bfloat16 on a CPU, up to this many keys, two plain matrix products stand in for the fused kernel."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v with the softmax in float32 (Vaswani et al. 2017, eq. 1).

    Args:
        q, k, v: (B, N, L, d), (B, N, K, d), (B, N, K, d).
        mask: (B, K), True where a key may be looked at. A query without any such key gets the mean of all values.
        causal: query i sees keys 0 … i + K - L only: the last L keys are its own sequence, those before a prefix.

    Returns:
        (B, N, L, d)
    """
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= MATMUL_MAX_KEYS
    if not plain and mask is None and (not causal or q.shape[2] == k.shape[2]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    bias = _bias(q, k, mask, causal)
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)  # (B, N, L, K)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _bias(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The masks as numbers to be added to the scores; finite, so that no row of the softmax is empty."""
    allowed = mask[:, None, None, :] if mask is not None else None  # (B, 1, 1, K)
    if causal:
        num_queries, num_keys = q.shape[2], k.shape[2]
        earlier = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)  # (L, K)
        earlier = earlier.tril(num_keys - num_queries)
        allowed = earlier if allowed is None else allowed & earlier
    if allowed is None:
        return None
    return torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, torch.finfo(q.dtype).min / 2)


class Attention(nn.Module):
    """Self-attention over x, joined by the keys and values of an optional context in one softmax.

    Rows of `qkv` are all queries, all keys, all values, each head by head; rows of `context` all keys, all values.

    Args:
        width: D of x; divisible by `num_heads`.
        num_heads: number of heads.
        context_dim: width of the context tokens, or None for plain self-attention.
        key_bias: keys have a bias, too. Without context it moves all scores of a query alike, and so changes nothing.
    """

    def __init__(self, width: int, num_heads: int, context_dim: int | None = None, *, key_bias: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"attention width {width} cannot be split into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.qv_bias = None if key_bias else nn.Parameter(torch.zeros(2 * width))
        self.context = nn.Linear(context_dim, 2 * width) if context_dim is not None else None
        self.proj = nn.Linear(width, width)

    def project(self, sequence: Tensor) -> KeysValues:
        """Keys and values of context tokens: (B, L, context_dim) → two of (B, N, L, d)."""
        assert self.context is not None, "this attention layer was built without a context"
        k, v = rearrange(
            self.context(sequence.to(self.context.weight.dtype)),
            "b l (two n d) -> two b n l d",
            two=2,
            n=self.num_heads,
        )
        return k, v

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, (B, N, L, d) each."""
        x = fit(x, self.qkv.weight)
        if self.qv_bias is None:
            rows = self.qkv(x)
        else:
            q, v = self.qv_bias.chunk(2)
            rows = F.linear(x, self.qkv.weight, torch.cat([q, torch.zeros_like(q), v]))
        q, k, v = rearrange(rows, "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        return q, k, v

    def forward(
        self, x: Tensor, context: KeysValues | None = None, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """(B, L, D) → (B, L, D).

        Args:
            x: tokens.
            context: keys and values placed before those of x.
            mask: True where valid, over the context if there is one (x is then all visible), else over x.
            causal: tokens of x see the context and the tokens of x up to their own place.
        """
        return self.extend(x, context, mask, causal=causal)[0]

    def extend(
        self, x: Tensor, context: KeysValues | None = None, mask: Tensor | None = None, *, causal: bool = False
    ) -> tuple[Tensor, KeysValues]:
        """`forward`, and all keys and values that x has seen, its own last: the context of what comes after x."""
        q, k, v = self._split(x)
        if context is not None:
            k, v = torch.cat([context[0].to(k.dtype), k], 2), torch.cat([context[1].to(v.dtype), v], 2)
            mask = None if mask is None else F.pad(mask, (0, x.shape[1]), value=True)
        return self.proj(rearrange(attend(q, k, v, mask, causal=causal), "b n l d -> b l (n d)")), (k, v)


class ImageAttention(nn.Module):
    """Residual attention over the pixels of a feature map (ADM), text keys and values first (GLIDE, section 3.1).

    With `positions` every pixel is told where it is, so that "left" can be looked up and need not be found out from the
    zeros that pad the convolutions.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        context_dim: int | None,
        *,
        norm_groups: int,
        norm_eps: float,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=norm_eps)
        self.positions = nn.Linear(4 * POSITION_OCTAVES, channels) if positions else None
        self.attention = Attention(channels, num_heads, context_dim)
        zero_module(self.attention.proj)

    def forward(self, x: Tensor, context: KeysValues | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        if self.positions is not None:
            where = pixel_positions(x.shape[2], x.shape[3], x.device)  # (H·W, F)
            tokens = tokens + self.positions(where.to(self.positions.weight.dtype)).to(tokens.dtype)
        out = self.attention(tokens, context, mask)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
