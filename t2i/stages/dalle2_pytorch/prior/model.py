"""A causal transformer with one shared head of keys and values, rotary positions and a bias by distance.

B batch · L caption tokens · D width of CLIP embeddings and of the model · N heads · d head width · T tokens
"""

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config, renamed
from t2i.core.errors import UsageError
from t2i.core.sizes import Heads, Layers, Length, Width
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.config import Diffusion, diffusion_section

Era = Literal["A", "B", "C", "D"]
"""How it attends and norms, by the version of the library that trained it.

A, to 0.16.0: softmax(q·k / √d + bias). B, to 0.23.2: with 1024 · bias, and every norm divides by the largest of a row
first. C, to 1.4.2: with 128 · bias, and so does the last norm alone. D, from 1.4.3: softmax(16 · q̂·k̂ + bias) with q̂, k̂
of unit norm, and the last norm as in C.
"""
NullMode = Literal["masked", "learned", "nulls"]
"""What stands where a caption is dropped or ends. "masked", before 0.23.1: nothing; places without a word are hidden,
and for guidance the whole sentence, which is of use only if training hid it now and then. "learned": a row for each
place, and no guidance. "nulls", from 1.9.0: for guidance a learned sentence, and a picture beside it, as well."""
_NULLS: dict[Era, tuple[NullMode, ...]] = {
    "A": ("masked",),
    "B": ("masked", "learned"),
    "C": ("learned",),
    "D": ("nulls", "learned"),
}
ROTARY = 32  # dimensions of a head that are turned, at most
BUCKETS, FARTHEST = 32, 128  # of the bias by distance
BIAS_SCALE: dict[Era, float] = {"A": 1.0, "B": 1024.0, "C": 128.0, "D": 1.0}
COSINE_SCALE = 16.0  # era D


class LaionPriorConfig(Config):
    """Everything about such a prior."""

    era: Era
    null_mode: NullMode = Field(
        "learned", description="what stands where nothing is said; follows from the era unless given"
    )
    clip_dim: Width = Field(768, description="width of CLIP's embeddings, and of its text states")
    clip_fingerprint: tuple[float, ...] = Field((), description="`ClipEncoder.fingerprint`, empty if unknown")
    context: Length = 77
    layers: Layers = 12
    heads: Heads = 12
    head_width: int = Field(64, ge=2, le=2**16)
    mlp_ratio: int = Field(4, ge=1, le=64, description="hidden width of the MLP over clip_dim")
    mlp_norm: bool = Field(True, description="a norm in the middle of the MLP")
    diffusion: Diffusion = Field(
        Diffusion(target="x0", variance="fixed_small", space="vector"), description="what it was trained on"
    )

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(diffusion_section(data), clip_mark="clip_fingerprint", unsaid="null_mode")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given  # pydantic says what is wrong with that
        usual = [null[0] for era, null in _NULLS.items() if era == given.get("era")]
        return {"null_mode": usual[0], **renamed(given, unsaid="null_mode")} if usual else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.null_mode not in _NULLS[self.era]:
            raise ValueError(
                f"null_mode={self.null_mode}, but in era {self.era} it was {' or '.join(_NULLS[self.era])}"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} is odd, but its dimensions are turned in pairs")
        return self

    @property
    def text_width(self) -> int:
        """Width of CLIP's text states."""
        return self.clip_dim

    @property
    def unit_norm(self) -> bool:
        """Embeddings of pictures and sentences have unit norm."""
        return True


class LargestNorm(nn.LayerNorm):
    """Layer norm of x over its largest value, sign and all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.amax(dim=-1, keepdim=True))


def _norm(width: int, largest: bool) -> nn.LayerNorm:
    return (LargestNorm if largest else nn.LayerNorm)(width, bias=False)


class Attention(nn.Module):
    """x + attention(norm(x)), with a learned key and value that every token may look at instead of the others."""

    def __init__(self, config: LaionPriorConfig) -> None:
        super().__init__()
        width, inner = config.clip_dim, config.heads * config.head_width
        self.era, self.heads = config.era, config.heads
        self.norm = _norm(width, config.era == "B")
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * config.head_width, bias=False)
        self.null = nn.Parameter(torch.randn(2, config.head_width))
        self.proj = nn.Linear(inner, width, bias=False)
        self.norm_out = _norm(width, config.era == "B")

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D), (N, T, 1 + T) or one for each of B → (B, T, D)."""
        y = self.norm(x)
        q = _turned(rearrange(self.q(y), "b t (n d) -> b n t d", n=self.heads))
        k, v = self.kv(y)[:, None].chunk(2, dim=-1)  # (B, 1, T, d)
        null_k, null_v = self.null[:, None, None, None].expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([null_k, _turned(k)], dim=2), torch.cat([null_v, v], dim=2)  # (B, 1, 1 + T, d)
        scale = q.shape[-1] ** -0.5
        if self.era == "D":
            q, k, scale = F.normalize(q, dim=-1), F.normalize(k, dim=-1), COSINE_SCALE
        k, v = (z.expand(-1, self.heads, -1, -1) for z in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
        return x + self.norm_out(self.proj(rearrange(out, "b n t d -> b t (n d)")))


class MLP(nn.Module):
    """x + W(norm(a · SiLU(b))), a and b the halves of a projection of norm(x) (Shazeer 2020)."""

    def __init__(self, config: LaionPriorConfig) -> None:
        super().__init__()
        width, inner = config.clip_dim, config.mlp_ratio * config.clip_dim
        self.norm = _norm(width, config.era == "B")
        self.hidden = nn.Linear(width, 2 * inner, bias=False)
        self.norm_mid = _norm(inner, config.era == "B") if config.mlp_norm else nn.Identity()
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.hidden(self.norm(x)).chunk(2, dim=-1)
        return x + self.out(self.norm_mid(a * F.silu(b)))


class LaionPrior(nn.Module):
    """caption · CLIP text embedding · time · noised z_i · one learned place to answer, each of width D.

    The network works on embeddings of unit norm times √D. Captions are as long as the context; see `NullMode` for what
    stands where they end.
    """

    def __init__(self, config: LaionPriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.clip_dim
        self.answer = nn.Parameter(torch.randn(width) * 0.02)
        if config.null_mode != "masked":
            self.padding = nn.Parameter(torch.randn(1, config.context, width) * 0.02)
        if config.null_mode == "nulls":  # no sentence, and no picture beside it
            self.null_text = nn.Parameter(torch.randn(1, 1, width) * 0.02)
            self.null_image = nn.Parameter(torch.randn(1, width) * 0.02)
        self.times = nn.Embedding(config.diffusion.num_steps, width)
        self.bias = nn.Embedding(BUCKETS, config.heads)
        self.attentions = nn.ModuleList(Attention(config) for _ in range(config.layers))
        self.mlps = nn.ModuleList(MLP(config) for _ in range(config.layers))
        self.norm = _norm(width, config.era != "A")
        self.out = nn.Linear(width, width, bias=False)

    @property
    def scale(self) -> float:
        """Of embeddings in the diffusion process, over those of unit norm."""
        return math.sqrt(self.config.clip_dim)

    def condition(self, text: TextFeatures) -> Condition:
        """Captions filled up, and z_t after them: `sequence` (B, L + 1, D), `mask` where places are hidden."""
        words = text.padded(self.config.context)
        if self.config.null_mode == "masked":
            shown = words.sequence.masked_fill(~words.mask[..., None], 1.0)  # zeros have no largest value to divide by
            sequence = torch.cat([shown, words.pooled[:, None]], dim=1)
            return Condition(sequence=sequence, mask=F.pad(words.mask, (0, 1), value=True))
        caption = torch.where(words.mask[..., None], words.sequence, self.padding)
        return Condition(sequence=torch.cat([caption, words.pooled[:, None]], dim=1))

    def null_condition(self, num: int) -> Condition:
        """The unconditional branch of guidance; `vector` (B, D) then stands for the noised embedding.

        Raises UsageError where there is none: guidance was out of order from 0.23.1 to 1.8.4.
        """
        if self.config.null_mode == "learned":
            raise UsageError("this prior was trained without an unconditional branch: its guidance must be 1")
        if self.config.null_mode == "masked":
            places = self.config.context + 1
            hidden = torch.zeros(num, places, dtype=torch.bool, device=self.answer.device)
            return Condition(sequence=self.answer.new_ones(num, places, self.config.clip_dim), mask=hidden)
        sequence = torch.cat([self.padding, self.null_text], dim=1)
        return Condition(sequence=sequence.expand(num, -1, -1), vector=self.null_image.expand(num, -1))

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noised embeddings (B, D), times √D, at times (B,) → the clean ones (B, D), times √D, float32."""
        assert condition.sequence is not None
        noised = x_t if condition.vector is None else condition.vector
        tail = torch.stack([self.times(t), noised.to(self.answer.dtype), self.answer.expand_as(x_t)], dim=1)
        x = torch.cat([condition.sequence.to(tail.dtype), tail], dim=1)  # (B, L + 4, D)
        bias = self._bias(x.shape[1], condition.mask)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = mlp(attention(x, bias))
        return self.out(self.norm(x[:, -1].float())).float()

    def _bias(self, num: int, mask: Tensor | None) -> Tensor:
        """Added to the scores (N, T, 1 + T), or (B, N, T, 1 + T) with `mask` (B, L + 1): by how far before a token a
        key stands, T5's way (Raffel et al. 2019). What comes later is hidden. The learned key is the first place."""
        device = self.bias.weight.device
        places = torch.arange(num + 1, device=device)
        distance = (places[:num, None] - places).clamp(min=0)  # (T, 1 + T)
        half = BUCKETS // 2  # one bucket each for the near half, by logarithm for the others
        share = (distance.clamp(min=1).float() / half).log() / math.log(FARTHEST / half)
        far = (half + (share * (BUCKETS - half)).long()).clamp(max=BUCKETS - 1)
        bias = self.bias(torch.where(distance < half, distance, far)).permute(2, 0, 1)  # (N, T, 1 + T)
        hidden = places > places[:num, None] + 1
        if mask is not None:  # of the keys between the learned one and time, z_i and answer
            hidden = hidden | ~F.pad(F.pad(mask, (1, 0), value=True), (0, 3), value=True)[:, None, None]
        return (bias * BIAS_SCALE[self.config.era]).masked_fill(hidden, torch.finfo(bias.dtype).min / 2)


def _turned(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs of neighbouring dimensions of (B, N, T, d), the first 32 of d."""
    width = min(ROTARY, x.shape[-1])
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * frequencies  # (T, width / 2)
    a, b = x[..., :width:2].float(), x[..., 1:width:2].float()
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    return torch.cat([turned, x[..., width:]], dim=-1)
