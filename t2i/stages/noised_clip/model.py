"""Two transformers that meet: one reads patches of a noised picture, the other words.

B batch · S side of the picture · P patches · L tokens · W width of a tower · D embedding width · T diffusion steps
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import upload
from t2i.core.sizes import Entries, Heads, Layers, Side, Width
from t2i.diffusion.config import Noise, diffusion_section
from t2i.diffusion.guidance import input_gradient
from t2i.nn.layers import timestep_embedding
from t2i.nn.transformer import Transformer, TransformerConfig
from t2i.text.tokenizers import TokenizerConfig

MEAN = (122.77093945, 116.74601272, 104.09373519)  # of pixels in 0…255, as published
STD = (68.50053285, 66.63215831, 70.32316309)


class TowerConfig(Config):
    """Shape of one of the two transformers, whose MLPs are four times as wide and whose keys have no bias."""

    width: Width = 512
    layers: Layers = 12
    heads: Heads = 8

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self

    def build(self, *, causal: bool) -> Transformer:
        return Transformer(
            TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, causal=causal, key_bias=False)
        )


class NoisedClipConfig(Config):
    """Everything about a noised CLIP."""

    embed_dim: Width = Field(512, description="D")
    image_size: Side = Field(64, description="side of the picture, in pixels")
    patch_size: Side = Field(4, description="side of a patch, in pixels")
    vision: TowerConfig = TowerConfig(width=768, heads=12)
    text: TowerConfig = TowerConfig()
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="context and vocabulary of the text tower")
    table_size: Entries | None = Field(
        None, description="rows of the table of tokens; null for as many as there are tokens"
    )
    scale: float = Field(
        1 / 0.07,
        gt=0,
        description="inverse temperature of the loss, and what similarities are multiplied by to guide; it is not "
        "learned. 100 as published; a new network finds its way sooner at 1/0.07, where CLIP's own begins",
    )
    diffusion: Noise = Field(
        Noise(), description="the noise it was trained on, which must be that of the diffusion model it guides"
    )

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return diffusion_section(data)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.diffusion.rescale_timesteps:
            raise ValueError("a noised CLIP knows whole timesteps: rescale_timesteps must be false")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.table_size is not None and self.table_size < self.tokenizer.vocab_size:
            raise ValueError(f"table_size={self.table_size} is less than the {self.tokenizer.vocab_size} tokens")
        return self


class ImageEncoder(nn.Module):
    """A vision transformer whose first token is a learned row per timestep."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        width, patch = config.vision.width, config.patch_size
        self.size = (3, config.image_size, config.image_size)
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        # Rows of neighbouring steps start alike, so that a step learns from all the others.
        self.times = nn.Embedding(config.diffusion.num_steps, width)
        self.times.weight = nn.Parameter(timestep_embedding(torch.arange(config.diffusion.num_steps), width))
        num_tokens = 1 + (config.image_size // patch) ** 2
        self.positions = nn.Parameter(torch.randn(num_tokens, width) * width**-0.5)
        self.norm_in = nn.LayerNorm(width)
        self.transformer = config.vision.build(causal=False)
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, 3, S, S) and integer timesteps (B,) → (B, D), of any length."""
        if x_t.shape[1:] != self.size:
            raise ValueError(f"x_t has shape {tuple(x_t.shape[1:])}, the network reads {self.size}")
        if t.is_floating_point():
            raise ValueError(f"timesteps must be integers 0…{self.times.num_embeddings - 1}, got {t.dtype}")
        channels = zip(x_t.float().unbind(1), MEAN, STD, strict=True)
        pixels = torch.stack([((x + 1) * 127.5 - mean) / std for x, mean, std in channels], dim=1)
        x = self.patches(pixels.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)  # (B, P, W)
        x = torch.cat([self.times(t)[:, None].to(x.dtype), x], dim=1) + self.positions  # (B, 1 + P, W)
        out: Tensor = self.proj(self.norm_out(self.transformer(self.norm_in(x))[:, 0]))
        return out


class TextEncoder(nn.Module):
    """A causal transformer, read at the end token."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        width, context = config.text.width, config.tokenizer.context
        self.tokens = nn.Embedding(config.table_size or config.tokenizer.vocab_size, width)
        self.positions = nn.Parameter(2 * timestep_embedding(torch.arange(context), width, longest=context))
        self.transformer = config.text.build(causal=True)
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, L) and mask (B, L), True up to and including the end token → (B, D), of any length."""
        length, context = tokens.shape[1], len(self.positions)
        if mask.shape != tokens.shape or length > context:
            raise ValueError(
                f"got tokens {tuple(tokens.shape)} and mask {tuple(mask.shape)}, expected equal shapes and at most "
                f"{context} tokens"
            )
        x = self.transformer(self.tokens(tokens) + self.positions[:length])  # (B, L, W)
        end = x[torch.arange(len(x), device=x.device), mask.sum(dim=1) - 1]  # (B, W)
        out: Tensor = self.proj(self.norm_out(end))
        return out


class NoisedClip(nn.Module):
    """Noised pictures and sentences to unit vectors."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageEncoder(config)
        self.text = TextEncoder(config)
        self.tokenizer = config.tokenizer.build()

    def encode_image(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, 3, S, S) and timesteps (B,) int64 of the original process → unit vectors (B, D), float32.

        Raises:
            ValueError: for pictures of another size and for fractional timesteps.
        """
        return F.normalize(self.image(x_t, t).float(), dim=-1)

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, L) and mask (B, L), True up to and including the end token → unit vectors (B, D), float32.

        Raises:
            ValueError: for more tokens than the context, and for a mask of another shape.
        """
        return F.normalize(self.text(tokens, mask).float(), dim=-1)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and mask on the model's device, L being no longer than the longest caption needs."""
        tokens, mask = self.tokenizer(captions)
        length, device = int(mask.sum(dim=1).max()), self.text.positions.device
        return upload(tokens[:, :length], device), upload(mask[:, :length], device)

    def similarity_gradient(self, x_t: Tensor, t: Tensor, text_embedding: Tensor) -> Tensor:
        """∇ scale · ⟨z_image(x_t, t), z_text⟩ at x_t, (B, 3, S, S) float32 (Nichol et al. 2021, section 2.4).

        With the embeddings (B, D) bound it is the `grad_fn` of `t2i.diffusion.guidance.score_guided`.
        """

        def similarity(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
            return self.config.scale * (self.encode_image(x_t, t) * z).sum(dim=1)

        return input_gradient(similarity, x_t, t, text_embedding)
