"""What a frozen CLIP says of pictures and of sentences.

B batch · L tokens · D width of embeddings · S of the context
"""

import torch
from pydantic import Field
from torch import nn

from t2i.core.config import Config
from t2i.core.sizes import Length, Width
from t2i.core.types import Condition, TextFeatures
from t2i.nn.layers import fit
from t2i.nn.ports.base import Given, Port


class ClipImageConfig(Config):
    """CLIP image embeddings; `dim` and `fingerprint` follow from the CLIP that the network learns from."""

    dim: Width | None = Field(None, description="width of the embeddings")
    num_tokens: Length = Field(4, description="context tokens made of one embedding")
    scale: float = Field(1.0, description="embeddings are multiplied by it first; √D gives unit vectors unit variance")
    fingerprint: tuple[float, ...] = Field((), description="`ClipEncoder.fingerprint` of that CLIP, empty if unknown")


class ClipImagePort(Port):
    """An embedding as vector and as tokens, or a learned one in its place."""

    def __init__(self, config: ClipImageConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if config.dim is None:
            raise ValueError("ports.clip_image.dim is not known; it follows from clip=FOLDER")
        self.config = config
        self.vector = nn.Linear(config.dim, vector_dim)
        self.tokens = nn.Linear(config.dim, config.num_tokens * context_dim)
        self.nothing = nn.Parameter(torch.zeros(config.dim))

    def read(self, given: Given) -> Condition:
        z = self.nothing.expand(given.num, -1)  # (B, D)
        if given.clip_image is not None:
            if given.clip_image.shape[-1] != self.config.dim:
                raise ValueError(f"image embedding of width {given.clip_image.shape[-1]}, expected {self.config.dim}")
            cond = given.clip_image.to(z.dtype) * self.config.scale
            z = torch.where(given.dropped["clip_image"][:, None], z, cond) if "clip_image" in given.dropped else cond
        return Condition(vector=self.vector(z), sequence=self.tokens(z).unflatten(1, (self.config.num_tokens, -1)))


class ClipTextConfig(Config):
    """What a frozen CLIP says of a sentence."""

    width: Width | None = Field(None, description="of its token states; follows from the encoder")
    dim: Width | None = Field(None, description="of its embedding of the whole sentence; follows from it as well")


class ClipTextPort(Port):
    """CLIP's states as sequence, its embedding of the sentence as vector; also of the empty sentence, so none stands
    where nothing is said."""

    reads = "clip_text"

    def __init__(self, config: ClipTextConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if config.dim is None or config.width is None:
            raise ValueError(f"ports.{self.reads}.width and .dim are not known; they follow from the frozen encoder")
        self.vector = nn.Linear(config.dim, vector_dim)
        self.states = nn.Sequential(nn.Linear(config.width, context_dim), nn.LayerNorm(context_dim))

    def read(self, given: Given) -> Condition:
        text: TextFeatures | None = getattr(given, self.reads)
        if text is None:
            what = "this network reads what a frozen encoder says of a sentence, of the empty sentence too"
            raise ValueError(f"{self.reads} is missing: {what}")
        sequence = self.states(fit(text.sequence, self.vector.weight))  # (B, L, S)
        return Condition(vector=self.vector(fit(text.pooled, self.vector.weight)), sequence=sequence, mask=text.mask)
