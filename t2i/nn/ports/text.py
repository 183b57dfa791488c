"""A text transformer that is trained with the network (GLIDE, section 2).

B batch · L tokens · S width of the context
"""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from t2i.core.types import Condition
from t2i.nn.ports.base import Given, Port, mean_of
from t2i.nn.transformer import TextConfig, TextTransformer
from t2i.text.tokenizers import TokenizerConfig


class TextPortConfig(TextConfig):
    """A text transformer, and the tokeniser that it was trained with."""

    tokenizer: TokenizerConfig | None = None

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set:
            ours = (self.vocab_size, self.context)
            theirs = (self.tokenizer.vocab_size, self.tokenizer.context)
            if ours[0] < theirs[0] or ours[1] != theirs[1]:
                raise ValueError(f"text has (vocab_size, context) {ours}, its tokenizer {theirs}")
        return self


class TextPort(Port):
    """Features of the caption as sequence. As in GLIDE the vector is made of the last one and there is no mask, as
    padding has learned rows of its own; with `attend_padding` off it is made of the mean of the words, and the mask
    hides the padding."""

    def __init__(self, config: TextPortConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        self.encoder = TextTransformer(config)
        self.vector = nn.Linear(config.width, vector_dim)

    def read(self, given: Given) -> Condition:
        tokens, mask = given.text if given.text is not None else self._no_words(given.num)
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if "text" in given.dropped:
            mask = ~given.dropped["text"][:, None] & mask
        features, visible = self.encoder(tokens, mask), self.encoder.visible(mask)  # (B, L, S) (B, L)
        pooled = features[:, -1] if visible is None else mean_of(features, visible)  # (B, S)
        return Condition(vector=self.vector(pooled), sequence=features, mask=visible)

    def _no_words(self, num: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, L) of empty captions."""
        shape, device = (num, self.encoder.config.context), self.vector.weight.device
        return torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
