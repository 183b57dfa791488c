"""What a frozen encoder of sentences other than CLIP says (DALL-E 3).

B batch · L tokens · W width of frozen states · S of the context
"""

from dataclasses import replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from t2i.core.errors import UsageError
from t2i.core.sizes import Heads
from t2i.core.types import Condition, TextFeatures
from t2i.nn.layers import fit
from t2i.nn.ports.base import Given, mean_of
from t2i.nn.ports.clip import ClipTextConfig, ClipTextPort
from t2i.nn.transformer import Transformer, TransformerConfig, word_positions


class StatesConfig(ClipTextConfig):
    """What a frozen encoder says of a sentence, and the transformer that reads it."""

    layers: int = Field(
        0, ge=0, le=256, description="of a transformer over the states, trained with the network: xfnet"
    )
    heads: Heads = Field(8, description="of that transformer")
    positions: int = Field(
        0,
        ge=0,
        le=2**14,
        description="of that transformer: learned rows that say which token is which, for sentences of so many; 0 for "
        "none, and a T5 itself knows only how far apart tokens are",
    )
    fingerprint: tuple[float, ...] = Field((), description="`TextEncoder.fingerprint`, empty if unknown")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.positions and not self.layers:
            raise ValueError(f"positions={self.positions} are of a transformer over the states, and layers=0 is none")
        return self


class StatesPort(ClipTextPort):
    """The same of another encoder, with one learned state in place of a sentence that is dropped or not there. With
    `layers` a transformer reads the states first, and the vector is made of the mean of what it puts out; with
    `positions` it is told the order of words, by which it finds out which colour is whose."""

    reads = "states"

    def __init__(self, config: StatesConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__(config, vector_dim, context_dim)
        self.width, dim = config.width or 0, config.dim or 0
        self.null_state = nn.Parameter(torch.zeros(self.width))
        self.transformer: Transformer | None = None
        self.positions: nn.Parameter | None = None
        if config.layers:
            if config.positions:
                self.positions = nn.Parameter(word_positions(config.positions, context_dim))
            shape = TransformerConfig(width=context_dim, layers=config.layers, heads=config.heads)
            self.transformer, self.norm = Transformer(shape), nn.LayerNorm(context_dim)
            self.vector = nn.Linear(context_dim, vector_dim)
            self.register_buffer("null_pooled", torch.zeros(dim), persistent=False)  # of no use
        else:
            self.null_pooled = nn.Parameter(torch.zeros(dim))

    def read(self, given: Given) -> Condition:
        text = given.states if given.states is not None else self._nothing(given.num, 1)
        if text.sequence.shape[-1] != self.width:
            raise ValueError(f"states of width {text.sequence.shape[-1]}, expected {self.width}")
        if "states" in given.dropped:
            dropped, nothing = given.dropped["states"], self._nothing(*text.mask.shape)
            text = TextFeatures(
                torch.where(dropped[:, None], nothing.pooled, text.pooled),
                torch.where(dropped[:, None, None], nothing.sequence, text.sequence),
                torch.where(dropped[:, None], nothing.mask, text.mask),
            )
        if self.transformer is None:
            return super().read(replace(given, states=text))
        x = self.states(fit(text.sequence, self.vector.weight))  # (B, L, S)
        if self.positions is not None:
            if x.shape[1] > len(self.positions):
                raise UsageError(f"states of {x.shape[1]} tokens, but ports.states.positions={len(self.positions)}")
            x = x + self.positions[: x.shape[1]].to(x.dtype)
        x = fit(self.norm(self.transformer(x, text.mask)), self.vector.weight)
        return Condition(vector=self.vector(mean_of(x, text.mask)), sequence=x, mask=text.mask)

    def _nothing(self, num: int, length: int) -> TextFeatures:
        first = (torch.arange(length, device=self.null_state.device) == 0).expand(num, -1)  # (B, L)
        return TextFeatures(self.null_pooled.expand(num, -1), self.null_state.expand(num, length, -1), first)
