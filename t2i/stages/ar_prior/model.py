"""A causal transformer over the quantised principal components of an image embedding, the widest first.

B batch · L caption tokens · W width of CLIP's text states · D width of CLIP embeddings · k components · K buckets
E width of the text encoder · M width of the decoder · N heads · d head width
"""

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config, renamed
from t2i.core.sizes import Heads, Layers, Length, Width
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.sphere import PrincipalComponents
from t2i.nn.layers import timestep_embedding
from t2i.nn.transformer import Transformer, TransformerConfig

MARGIN = 0.1
"""How far the buckets reach beyond the values that were measured, on either side, as a share of their range."""


class ArPriorConfig(Config):
    """`clip_dim` and `text_width` are CLIP's, `clip_fingerprint` is `ClipEncoder.fingerprint` of it, empty if unknown;
    `unit_norm` as in `ClipConfig`.

    The paper has 319 components of 1024, which leave less than 1 % of the variance away, 1024 buckets, a text encoder
    of width 2048 and a decoder of width 1664, both 24 layers deep.
    """

    clip_dim: Width = 256
    clip_fingerprint: tuple[float, ...] = ()
    unit_norm: bool = True
    text_width: Width = 256
    context: Length = 64
    num_components: Length = 64
    num_buckets: int = Field(256, ge=2, le=2**16)
    encoder_width: Width = 256
    encoder_layers: int = Field(2, ge=0, le=256)
    encoder_heads: Heads = 4
    width: Width = 256
    layers: Layers = 6
    heads: Heads = 4

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(data, clip_mark="clip_fingerprint")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for prefix in ("", "encoder_"):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}heads")
            if width % heads:
                raise ValueError(f"{prefix}width={width} is not a multiple of {prefix}heads={heads}")
        return self

    @property
    def num_codes(self) -> int:
        """Codes of an embedding: that of its dot product, then one per component."""
        return 1 + self.num_components


class ArPrior(nn.Module):
    """z_t · code of z_i·z_t · code of component 1 … k: from each place the next code is predicted.

    Where the paper says no more, this is what stands here:

    - The caption: its 256 tokens have no room in a decoder of 384 places that holds 319 codes. A text encoder reads
      CLIP's states, and what it makes of them are keys and values of every layer of the decoder, before those of the
      codes (as GLIDE's U-Net hears captions).
    - The buckets: equally wide, from a little below the smallest to a little above the largest value measured, for each
      component on its own. Two numbers tell where they lie, and a few hundred embeddings tell these. Buckets of equal
      probability want many embeddings each: with 256 of them from 512 pictures of the shapes world, components of
      others come back with 6 times the squared error. Values beyond go to the outermost bucket.
    - The distribution of the dot product: predicted, as that of every other code. It depends on the sentence, and the
      upper half of a table for all may be out of reach for one.

    PCA and buckets are buffers, measured on the training set and saved with the weights. Until they are known they are
    NaN; `sample` refuses.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: ArPriorConfig) -> None:
        super().__init__()
        if config.num_components > config.clip_dim:
            raise ValueError(f"num_components={config.num_components} of embeddings of width {config.clip_dim}")
        self.config = config
        width, encoder_width, num_codes = config.width, config.encoder_width, config.num_codes
        self.text_proj = nn.Linear(config.text_width, encoder_width)
        self.text_positions = nn.Parameter(torch.randn(config.context, encoder_width) * 0.02)
        self.text_encoder = Transformer(
            TransformerConfig(width=encoder_width, layers=config.encoder_layers, heads=config.encoder_heads)
        )
        self.text_norm = nn.LayerNorm(encoder_width)
        self.text_keys_values = nn.ModuleList(nn.Linear(encoder_width, 2 * width) for _ in range(config.layers))
        self.clip_text_proj = nn.Linear(config.clip_dim, width)
        self.codes = nn.Embedding(config.num_buckets, width)
        self.positions = nn.Parameter(torch.randn(num_codes, width) * 0.02)
        self.transformer = Transformer(
            TransformerConfig(width=width, layers=config.layers, heads=config.heads, causal=True)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.num_buckets)
        # Codes are numbers: neighbours start alike, going in and coming out, and are told apart where that pays.
        order = timestep_embedding(torch.arange(config.num_buckets), width, longest=config.num_buckets)
        self.codes.weight.data.copy_(order)
        self.out.weight.data.copy_(0.02 * order)
        self.register_buffer("mean", torch.full((config.clip_dim,), torch.nan))
        self.register_buffer("components", torch.full((config.num_components, config.clip_dim), torch.nan))
        self.register_buffer("low", torch.full((num_codes,), torch.nan))
        self.register_buffer("high", torch.full((num_codes,), torch.nan))

    @property
    def calibrated(self) -> bool:
        """Whether PCA and buckets are known; waits for the device."""
        return all(bool(x.isfinite().all()) for x in (self.mean, self.components, self.low, self.high))

    @torch.no_grad()
    def calibrate(self, z_i: Tensor, z_t: Tensor) -> None:
        """Measure PCA and buckets on embeddings of N pictures and of their captions, (N, D) each; N > k."""
        k = self.config.num_components
        if len(z_i) <= k or not (z_i.isfinite().all() and z_t.isfinite().all()):
            raise ValueError(f"{k} components need at least {k + 1} embeddings, all finite, got {len(z_i)}")
        mean, axes = PrincipalComponents.of(z_i)
        self.mean.copy_(mean)
        self.components.copy_(axes[:k])
        values = self._values(z_i, z_t)  # (N, 1 + k)
        low, high = values.amin(dim=0), values.amax(dim=0)
        margin = MARGIN * (high - low).clamp(min=1e-4)
        self.low.copy_(low - margin)
        self.high.copy_(high + margin)

    def _values(self, z_i: Tensor, z_t: Tensor) -> Tensor:
        """What is quantised, (B, 1 + k): z_i·z_t and the components of z_i."""
        with torch.autocast(z_i.device.type, enabled=False):
            return torch.cat([(z_i * z_t).sum(dim=1, keepdim=True), (z_i - self.mean) @ self.components.T], dim=1)

    def quantise(self, z_i: Tensor, z_t: Tensor) -> Tensor:
        """Embeddings of pictures and of their captions, (B, D) each → codes (B, 1 + k), that of z_i·z_t first."""
        share = (self._values(z_i, z_t) - self.low) / (self.high - self.low)
        return (share * self.config.num_buckets).long().clamp(0, self.config.num_buckets - 1)

    def restore(self, codes: Tensor) -> Tensor:
        """Codes of the first n components (B, n), the others at their mean → embeddings (B, D), projected to unit norm
        where CLIP's embeddings have that."""
        places = slice(1, 1 + codes.shape[1])
        low, high = self.low[places], self.high[places]
        values = low + (codes + 0.5) * (high - low) / self.config.num_buckets  # the middle of each bucket
        with torch.autocast(values.device.type, enabled=False):
            z_i = self.mean + values @ self.components[: codes.shape[1]]
        return F.normalize(z_i, dim=-1) if self.config.unit_norm else z_i

    def condition(self, text: TextFeatures) -> Condition:
        """Read the sentence once: z_t as the decoder's first token, the caption as keys and values of every layer."""
        x = self.text_proj(text.sequence) + self.text_positions[: text.mask.shape[1]]  # (B, L, E)
        x = self.text_norm(self.text_encoder(x, text.mask))
        heads = self.config.heads
        context = [rearrange(kv(x), "b l (two n d) -> two b n l d", two=2, n=heads) for kv in self.text_keys_values]
        return Condition(
            vector=self.clip_text_proj(text.pooled), mask=text.mask, context=tuple((k, v) for k, v in context)
        )

    def forward(self, codes: Tensor, condition: Condition) -> Tensor:
        """The first n ≤ k codes (B, n) → logits (B, n + 1, K) of the first n + 1, float32."""
        assert condition.vector is not None
        tokens = torch.cat([condition.vector[:, None], self.codes(codes)], dim=1)  # (B, n + 1, M)
        tokens = tokens + self.positions[: tokens.shape[1]]
        return self._logits(self.transformer(tokens, condition.mask, condition.context))

    def step(self, token: Tensor, place: int, condition: Condition) -> tuple[Tensor, Condition]:
        """One token (B, M), at its place after those that the condition holds → logits (B, K) of the code that follows,
        float32, and the condition that holds this token, too.

        The first token is `condition.vector`, the others are `codes` of what was drawn.
        """
        assert condition.mask is not None
        x = (token + self.positions[place])[:, None]
        out, context = self.transformer.extend(x, condition.mask, condition.context)
        grown = replace(condition, mask=F.pad(condition.mask, (0, 1), value=True), context=context)
        return self._logits(out[:, 0]), grown

    def _logits(self, out: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            return self.out(self.norm(out.float()))
