"""Which tokeniser a network was trained with, as data that is saved beside its weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from t2i.config import Config
from t2i.text.words import WordTokenizer
from t2i.types import Tokenizer


class TokenizerConfig(Config):
    """`words` splits into the given words (`t2i.text.words`); `clip` is CLIP's byte-pair encoding, 49,408 entries."""

    kind: Literal["words", "clip"] = "words"
    context: int = Field(default=64, ge=2)
    words: tuple[str, ...] = ()

    @field_validator("words")
    @classmethod
    def _check(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return WordTokenizer(words).vocabulary

    @property
    def vocab_size(self) -> int:
        return len(self.words) + WordTokenizer.num_special if self.kind == "words" else 49408

    def build(self) -> Tokenizer:
        return WordTokenizer(self.words, self.context) if self.kind == "words" else ClipTokenizer(self.context)


def tokenize(tokenizer: Tokenizer, captions: Sequence[str], *, trim: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, L) of a network's own text path, where an empty caption has no real token at all.

    With `trim`, for networks that do not read padding, L is the length of the longest caption, but at least 1.
    """
    tokens, mask = tokenizer(captions)
    said = torch.tensor([bool(caption.strip()) for caption in captions])
    mask = mask & said[:, None]
    length = max(int(mask.sum(dim=1).max()), 1) if trim else tokens.shape[1]
    return tokens[:, :length], mask[:, :length]


class ClipTokenizer:
    """CLIP's byte-pair encoding as open_clip ships it; knows every word, so nothing is ever `unknown`."""

    end = 49407

    def __init__(self, context: int = 77) -> None:
        from open_clip import SimpleTokenizer

        self.context = context
        self._tokenizer = SimpleTokenizer(context_length=context)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, context) int64, mask (B, context), True up to and including the end token."""
        tokens = self._tokenizer(list(captions))  # (B, L)
        last = tokens.argmax(dim=-1, keepdim=True)  # (B, 1) place of the end token
        return tokens, torch.arange(self.context) <= last

    def unknown(self, caption: str) -> list[str]:
        return []

    def truncated(self, caption: str) -> bool:
        return len(self._tokenizer.encode(caption)) > self.context - 2
