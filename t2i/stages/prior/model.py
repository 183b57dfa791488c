"""A causal transformer that reads a sentence and a noised image embedding and answers with the clean embedding.

B batch · L caption tokens · W width of CLIP's text states · D width of CLIP embeddings · M width of the model
"""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config, renamed
from t2i.core.errors import UsageError
from t2i.core.sizes import Heads, Layers, Length, Width
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.config import Diffusion, diffusion_section
from t2i.nn.layers import timestep_embedding
from t2i.nn.transformer import Transformer, TransformerConfig

PriorVariance = Literal["fixed_small", "fixed_large", "analytic"]


class PriorConfig(Config):
    """Everything about a diffusion prior."""

    clip_dim: Width = Field(256, description="width of CLIP's embeddings")
    clip_fingerprint: tuple[float, ...] = Field((), description="`ClipEncoder.fingerprint`, empty if unknown")
    unit_norm: bool = Field(True, description="as in `ClipConfig`")
    text_width: Width = Field(256, description="width of CLIP's text states")
    context: Length = Field(64, description="tokens of a caption, at most")
    width: Width = Field(256, description="of the transformer")
    layers: Layers = Field(6, description="of the transformer")
    heads: Heads = Field(4, description="of every attention")
    diffusion: Diffusion = Field(
        Diffusion(target="x0", variance="fixed_small", space="vector"),
        description="what it was trained on; an analytic variance is that which `t2i calibrate` measured",
    )
    clamp: float | None = Field(6.0, gt=0, description="bound of the standardised x_0 while sampling, null for none")

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(diffusion_section(data), clip_mark="clip_fingerprint")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.diffusion.variance == "learned_range":
            raise ValueError("variance 'learned_range' is for pictures; a prior's is fixed or analytic")
        return self


class Prior(nn.Module):
    """The token sequence of the paper: caption · CLIP text embedding · time · noised z_i · one learned place to answer.

    The network works on standardised embeddings, (z - mean) / std; both are buffers, measured on the training set and
    saved with the weights. Until they are known they are NaN, and so is everything made with them; `sample` refuses.
    So it is with `x_0_variance`, which only priors of analytic variance have (`t2i.diffusion.analytic`).
    """

    mean: Tensor
    std: Tensor
    x_0_variance: Tensor | None

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_proj = nn.Linear(config.text_width, width)
        self.clip_text_proj = nn.Linear(config.clip_dim, width)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.noised_proj = nn.Linear(config.clip_dim, width)
        self.answer = nn.Parameter(torch.randn(1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, config.context + 4, width) * 0.02)
        self.transformer = Transformer(
            TransformerConfig(width=width, layers=config.layers, heads=config.heads, causal=True)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.clip_dim)
        self.register_buffer("mean", torch.full((config.clip_dim,), torch.nan))
        self.register_buffer("std", torch.full((config.clip_dim,), torch.nan))
        d = config.diffusion
        analytic = torch.full((d.num_steps,), torch.nan) if d.variance == "analytic" else None
        self.register_buffer("x_0_variance", analytic)

    @property
    def calibrated(self) -> bool:
        """Whether the statistics of CLIP's image embeddings are known; waits for the device."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.std).all())

    @torch.no_grad()
    def calibrate(self, z_i: Tensor) -> None:
        """Measure mean and standard deviation of image embeddings (N, D); N of a few hundred is enough."""
        if len(z_i) < 2 or not z_i.isfinite().all():
            raise ValueError(f"statistics need at least 2 embeddings, all finite, got {len(z_i)}")
        self.mean.copy_(z_i.mean(dim=0))
        self.std.copy_(z_i.std(dim=0).clamp(min=1e-4))

    def diffusion(self, variance: PriorVariance | None = None) -> tuple[Diffusion, Tensor | None]:
        """What to sample by, with the variance of the config or with another, and what was measured for it.

        Raises UsageError for an analytic variance that was never measured; waits for the device where there is one.
        """
        diffusion = self.config.diffusion.model_copy(update={"variance": variance} if variance is not None else {})
        if diffusion.variance != "analytic":
            return diffusion, None
        if self.x_0_variance is None or not self.x_0_variance.isfinite().all():
            raise UsageError("this prior's analytic variances were never measured; do so with t2i calibrate")
        return diffusion, self.x_0_variance

    def standardise(self, z_i: Tensor) -> Tensor:
        """CLIP's embeddings (B, D) → what the diffusion process works on."""
        return (z_i - self.mean) / self.std

    def restore(self, x_0: Tensor) -> Tensor:
        """The inverse of `standardise`, projected back to unit norm where CLIP's embeddings have that."""
        z_i = x_0 * self.std + self.mean
        return nn.functional.normalize(z_i, dim=-1) if self.config.unit_norm else z_i

    def condition(self, text: TextFeatures) -> Condition:
        """Read the sentence once: keys and values of the caption and of z_t at every layer, reused at every step.

        The mask is causal, so nothing of the sentence depends on what comes after it.
        """
        caption = self.text_proj(text.sequence)  # (B, L, M)
        pooled = self.clip_text_proj(text.pooled)[:, None]  # (B, 1, M)
        caption = caption + self.positions[:, : caption.shape[1]]
        tokens = torch.cat([caption, pooled + self.positions[:, -4:-3]], dim=1)  # (B, L+1, M)
        mask = torch.cat([text.mask, text.mask.new_ones(len(text.mask), 1)], dim=1)  # (B, L+1)
        return Condition(mask=mask, context=self.transformer.prefix(tokens, mask))

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noised standardised embedding (B, D) at times (B,) → prediction (B, D), float32."""
        assert condition.context is not None
        time = self.time_embed(timestep_embedding(t, self.config.width))  # (B, M)
        answer = self.answer.expand(len(x_t), -1)  # (B, M)
        tokens = torch.stack([time, self.noised_proj(x_t), answer], dim=1)  # (B, 3, M)
        tokens = tokens + self.positions[:, -3:]
        out = self.transformer(tokens, condition.mask, condition.context)[:, -1]  # (B, M) the last place answers
        with torch.autocast(x_t.device.type, enabled=False):
            return self.out(self.norm(out.float()))  # (B, D)
