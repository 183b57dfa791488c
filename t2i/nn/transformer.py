"""Pre-norm transformers, and the text encoder built of them.

Legend: B batch · L tokens · D width.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.sizes import Entries, Heads, Length, Multiplier, Width
from t2i.core.types import KeysValues
from t2i.nn.attention import Attention
from t2i.nn.layers import fit, timestep_embedding


class TransformerConfig(Config):
    """Shape of a `Transformer`: `mlp_ratio` is the hidden width of the MLP over `width`, `causal` hides later tokens,
    `key_bias` as in `Attention`."""

    width: Width = 512
    layers: int = Field(default=16, ge=0, le=256)
    heads: Heads = 8
    mlp_ratio: Multiplier = 4.0
    causal: bool = False
    key_bias: bool = True
    norm_eps: float = Field(default=1e-5, ge=0, le=1)


class TextConfig(TransformerConfig):
    """Shape of a `TextTransformer`: a transformer over `context` tokens out of a vocabulary of `vocab_size`.

    `attend_padding`: as in GLIDE, learned rows stand for what is missing and are looked at like words. Without it only
    words are, which a small network learns from far fewer pictures.
    """

    vocab_size: Entries = 50257
    context: Length = 128
    attend_padding: bool = True


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with the exact GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.causal = config.causal
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(width, config.heads, key_bias=config.key_bias)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def initialise(self, branch_std: float) -> None:
        """Draw the weights; `branch_std` is the standard deviation of the two layers that write into the residual."""
        width = self.norm1.normalized_shape[0]
        first, last = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        scales = {self.attention.qkv: width**-0.5, first: (2 * width) ** -0.5}
        for linear, std in (scales | {self.attention.proj: branch_std, last: branch_std}).items():
            nn.init.normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: KeysValues | None = None) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        return self.extend(x, mask, context)[0]

    def extend(
        self, x: Tensor, mask: Tensor | None = None, context: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """As `Attention.extend`."""
        seen, extended = self.attention.extend(self.norm1(x), context, mask, causal=self.causal)
        x = x + seen
        return x + self.mlp(fit(self.norm2(x), self.attention.proj.weight)), extended


class Transformer(nn.Module):
    """A stack of pre-norm blocks, without embeddings and without a final norm.

    Initialised as CLIP's text tower (Radford et al. 2021): branches start at 1/√(2·layers) of their natural size.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        blocks = [TransformerBlock(config) for _ in range(config.layers)]
        branch = config.width**-0.5 * (2 * max(config.layers, 1)) ** -0.5
        for block in blocks:
            block.initialise(branch)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Sequence[KeysValues] | None = None) -> Tensor:
        """(B, L, D) → (B, L, D).

        Args:
            mask: True where a token may be attended to: (B, L), or (B, P) over the prefix if there is one.
            context: what `prefix` returned for P tokens that stand before x.
        """
        for i, block in enumerate(self.blocks):
            x = block(x, mask, None if context is None else context[i])
        return x

    def prefix(self, x: Tensor, mask: Tensor | None = None) -> tuple[KeysValues, ...]:
        """Read the first P tokens (B, P, D) of causal sequences once: keys and values of every layer, for `forward`."""
        return self.extend(x, mask)[1]

    def extend(
        self, x: Tensor, mask: Tensor | None = None, context: Sequence[KeysValues] | None = None
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """`forward` of causal sequences, and the context with x after it, for the tokens that follow. A mask over the
        context grows with it: pad it with True."""
        assert self.config.causal, "tokens before others can be read alone only under a causal mask"
        grown = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            x, extended = block.extend(x, mask, None if context is None else context[i])
            grown.append(extended)
        return x, tuple(grown)


def word_positions(context: int, width: int) -> Tensor:
    """Rows (L, D) to learn the order of words from. Sinusoids, and louder than words of unit variance: being next to
    each other is linear in them, so that a small network finds out sooner than from rows drawn at random."""
    return 2 * timestep_embedding(torch.arange(context), width, longest=context)


class TextTransformer(nn.Module):
    """Tokens to a sequence of features (GLIDE, section 4): positions outside the mask are *replaced* by a learned
    padding row, after which all positions take part in attention, unless `attend_padding` is off."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(word_positions(config.context, config.width))
        self.padding = nn.Parameter(torch.empty(config.context, config.width))
        self.transformer = Transformer(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.normal_(self.padding)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of every position.

        Args:
            tokens: (B, L) int64; what stands outside the mask does not matter.
            mask: (B, L) bool, True on real tokens; None means all of them.

        Returns:
            (B, L, width)

        Raises:
            ValueError: if L is not `context`, or with `attend_padding` off larger than that.
        """
        length, context = tokens.shape[1], self.config.context
        if length > context or (length < context and self.config.attend_padding):
            raise ValueError(f"got {length} tokens, the encoder takes {context}")
        x = self.tokens(tokens) + self.positions[:length]  # (B, L, D)
        if mask is not None:
            x = torch.where(mask[..., None], x, self.padding[:length])
        return fit(self.norm(self.transformer(x, self.visible(mask))), self.tokens.weight)

    def visible(self, mask: Tensor | None) -> Tensor | None:
        """Which features may be attended to, (B, L) bool, or None for all; the first one always may."""
        if self.config.attend_padding or mask is None:
            return None
        return mask | (torch.arange(mask.shape[1], device=mask.device) == 0)
