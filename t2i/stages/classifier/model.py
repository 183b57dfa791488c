"""The noised classifier: the U-Net's encoder, read by an attention pool.

B batch · C channels · S side of the picture · H W of the coarsest level · N heads · d head width · K classes
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.sizes import Side
from t2i.diffusion.config import Noise, diffusion_section
from t2i.diffusion.guidance import input_gradient
from t2i.nn.attention import attend
from t2i.nn.encoder import Encoder, EncoderConfig
from t2i.nn.layers import GroupNorm


class ClassifierConfig(Config):
    """Everything about a classifier."""

    encoder: EncoderConfig = Field(description="the network below the pool; it sees x_t and t alone")
    num_classes: int = Field(0, ge=0, le=10**7, description="K; 0 for as many as the data has folders")
    class_names: tuple[str, ...] = Field((), description="what users call the classes, empty if they have no names")
    image_size: Side = Field(64, description="of x_t; the pool has a row for every place of the coarsest level")
    diffusion: Noise = Field(
        Noise(), description="the noise it was trained on, which must be that of the diffusion model it guides"
    )

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return diffusion_section(data)

    @model_validator(mode="after")
    def _check(self) -> Self:
        encoder, width = self.encoder, self.encoder.widths[-1]
        if self.num_classes == 1:
            raise ValueError("there is nothing to tell apart where num_classes=1")
        if self.image_size % encoder.factor:
            raise ValueError(f"image_size={self.image_size} is not a multiple of the encoder's {encoder.factor}")
        if width % encoder.heads(width):
            raise ValueError(f"the pool's {width} channels cannot be split into {encoder.heads(width)} heads")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for num_classes={self.num_classes}")
        if encoder.image_channels or encoder.context_dim is not None:
            raise ValueError(
                f"a classifier is told nothing beside x_t and t: encoder.image_channels={encoder.image_channels} "
                f"must be 0 and encoder.context_dim={encoder.context_dim} null"
            )
        return self


class AttentionPool(nn.Module):
    """One look at a feature map, asked by its mean (CLIP: Radford et al. 2021, section 2.4), in float32."""

    def __init__(self, num_places: int, width: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positions = nn.Parameter(torch.randn(width, 1 + num_places) * width**-0.5)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        x = x.flatten(2)  # (B, C, H·W)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positions.float()  # (B, C, 1 + H·W)
        rows = F.linear(x.transpose(1, 2), self.qkv.weight.float(), self.qkv.bias.float())  # (B, 1 + H·W, 3C)
        q, k, v = rearrange(rows, "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        pooled = attend(q[:, :, :1], k, v).flatten(1)  # (B, C)
        return F.linear(pooled, self.proj.weight.float(), self.proj.bias.float())


class Classifier(nn.Module):
    """`classifier(x_t, t) → logits`."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise ValueError("num_classes is not known; it follows from the folders of the data")
        self.config = config
        c, width = config.encoder, config.encoder.widths[-1]
        self.encoder = Encoder(c)
        self.norm_out = GroupNorm(c.norm_groups, width, eps=c.norm_eps)
        self.pool = AttentionPool((config.image_size // c.factor) ** 2, width, c.heads(width), config.num_classes)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, 3, S, S) and timesteps (B,) → logits (B, K), float32; ValueError for pictures of another size."""
        size = (self.config.image_size, self.config.image_size)
        if x_t.shape[2:] != size:
            raise ValueError(f"x_t has {tuple(x_t.shape[2:])} pixels, the classifier reads {size}")
        h = self.encoder(x_t, t)  # (B, C, H, W)
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.pool(self.norm_out(h.float(), silu=True))
        return logits

    def log_probability(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The log p(label | x_t), (B,) float32, of labels (B,) int64 in 0…K-1.

        Raises:
            ValueError: for labels of another kind, and where they can be looked at without waiting for a device (on the
                CPU) for labels out of range.
        """
        check_labels(labels, len(x_t), self.config.num_classes)
        return self(x_t, t).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]

    def log_probability_gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """∇ log p(label | x_t) at x_t, (B, 3, S, S) float32 (Dhariwal & Nichol 2021, algorithms 1 and 2).

        With the labels bound it is the `grad_fn` of `t2i.diffusion.guidance.score_guided`.
        """
        return input_gradient(self.log_probability, x_t, t, labels)


def check_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    """ValueError for labels that are not `batch` integers in 0…num_classes-1; on a GPU the range is not looked at."""
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(f"expected {batch} labels, int64, got {tuple(labels.shape)} of {labels.dtype}")
    if labels.device.type == "cpu" and batch and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels {int(labels.min())}…{int(labels.max())} are not all in 0…{num_classes - 1}")
