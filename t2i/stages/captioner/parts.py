"""What CoCa is made of beside plain transformers: attention to a picture, poolers of it, and layers that do both.

B batch · L tokens · P patches of a picture · Q queries · D width · N heads · d head width
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from t2i.core.types import KeysValues
from t2i.nn.attention import attend
from t2i.nn.layers import fit
from t2i.nn.transformer import TransformerBlock, TransformerConfig


class CrossAttention(nn.Module):
    """Queries of one sequence over another one of width `context_dim`; the last layer starts at `out_std`."""

    def __init__(self, width: int, heads: int, context_dim: int, out_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context_dim, 2 * width)
        self.proj = nn.Linear(width, width)
        for linear, std in ((self.q, width**-0.5), (self.kv, context_dim**-0.5), (self.proj, out_std)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def project(self, sequence: Tensor) -> KeysValues:
        """Keys and values (B, N, P, d) of what is looked at, (B, P, context_dim)."""
        rows = self.kv(fit(sequence, self.kv.weight))
        k, v = rearrange(rows, "b l (two n d) -> two b n l d", two=2, n=self.heads)
        return k, v

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        q = rearrange(self.q(fit(x, self.q.weight)), "b l (n d) -> b n l d", n=self.heads)
        return self.proj(rearrange(attend(q, *context), "b n l d -> b l (n d)"))


class AttentionalPooler(nn.Module):
    """`num` learned queries over a sequence, in one layer (Yu et al. 2022, section 3.2)."""

    def __init__(self, num: int, width: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num, width))
        self.attention = CrossAttention(width, heads, context_dim, width**-0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, P, context_dim) → (B, Q, D)."""
        queries = self.queries.repeat(len(sequence), 1, 1)
        return self.norm(self.attention(queries, self.attention.project(sequence)))


class MultimodalBlock(TransformerBlock):
    """A transformer's block with attention to a picture after that to the text itself."""

    def __init__(self, config: TransformerConfig, context_dim: int, branch_std: float) -> None:
        super().__init__(config)
        self.norm_cross = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config.width, config.heads, context_dim, branch_std)
        self.initialise(branch_std)

    def look(self, x: Tensor, picture: KeysValues, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Tokens (B, L, D) after those in `past` → (B, L, D), and all keys and values of the text."""
        seen, extended = self.attention.extend(self.norm1(x), past, causal=True)
        x = x + seen
        x = x + self.cross(self.norm_cross(x), picture)
        return x + self.mlp(fit(self.norm2(x), self.attention.proj.weight)), extended
