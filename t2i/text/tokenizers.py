"""Which tokeniser a network was trained with, as data that is saved beside its weights."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from t2i.core.assets import offline
from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.types import Tokenizer
from t2i.text.words import WordTokenizer

GPT2 = ("gpt2", "openai-community/gpt2")
"""Names of GPT-2 on the hub."""


class TokenizerConfig(Config):
    """`words` splits into the given words (`t2i.text.words`); `clip` is CLIP's byte-pair encoding, 49,408 entries;
    `gpt2` is GPT-2's as GLIDE uses it, 50,257 entries, by its name on the hub or from a folder: `source`."""

    kind: Literal["words", "clip", "gpt2"] = Field("words", description="clip and gpt2 read any word")
    context: int = Field(default=64, ge=2, le=2**14, description="tokens of a caption, at most; 77 in OpenAI's CLIP")
    words: tuple[str, ...] = Field((), description="of kind words; empty for those of the shapes world")
    source: str = Field("gpt2", description="of kind gpt2: its name on the hub, or a folder")

    @field_validator("words")
    @classmethod
    def _check(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return WordTokenizer(words).vocabulary

    @property
    def vocab_size(self) -> int:
        if self.kind == "words":
            return len(self.words) + WordTokenizer.num_special
        return 49408 if self.kind == "clip" else 50257

    def build(self) -> Tokenizer:
        """The same one every time. Raises UsageError if `source` holds no GPT-2 tokeniser, or cannot be reached."""
        return _built(self)


@cache
def _built(config: TokenizerConfig) -> Tokenizer:
    if config.kind == "words":
        return WordTokenizer(config.words, config.context)
    return ClipTokenizer(config.context) if config.kind == "clip" else GPT2Tokenizer(config.context, config.source)


def tokenize(tokenizer: Tokenizer, captions: Sequence[str], *, trim: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, L) of a network's own text path, where an empty caption has no real token at all.

    With `trim`, for networks that do not read padding, L is the length of the longest caption, but at least 1.
    """
    tokens, mask = tokenizer(captions)
    has_words = torch.tensor([bool(caption.strip()) for caption in captions])
    mask = mask & has_words[:, None]
    length = max(int(mask.sum(dim=1).max()), 1) if trim else tokens.shape[1]
    return tokens[:, :length], mask[:, :length]


class ClipTokenizer:
    """CLIP's byte-pair encoding as open_clip ships it; knows every word, so nothing is ever `unknown`."""

    start, end = 49406, 49407

    def __init__(self, context: int = 77) -> None:
        from open_clip import SimpleTokenizer

        self.context, self.room = context, context - 2
        self._tokenizer = SimpleTokenizer(context_length=context)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, context) int64, mask (B, context), True up to and including the end token."""
        tokens = self._tokenizer(list(captions))  # (B, L)
        last = tokens.argmax(dim=-1, keepdim=True)  # (B, 1) place of the end token
        return tokens, torch.arange(self.context) <= last

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, lower-cased as it was read; those that start and end a caption are passed over."""
        text: str = self._tokenizer.decode([i for i in ids if i < self.start])
        return text.strip()

    def unknown(self, caption: str) -> list[str]:
        return []

    def truncated(self, caption: str) -> bool:
        return len(self._tokenizer.encode(caption)) > self.room


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding as GLIDE reads it: lower-cased, without start and end, filled up with 50256.

    Args:
        context: tokens of every row; what is beyond is cut.
        source: a folder of transformers' GPT-2 tokeniser, or its name on the hub.

    Raises:
        UsageError: it is neither.
    """

    filler = 50256

    def __init__(self, context: int = 128, source: str = "gpt2") -> None:
        from transformers import GPT2Tokenizer as Gpt2

        self.context = self.room = context
        try:
            if source not in GPT2 and not os.path.isdir(source):
                raise ValueError(f"of the hub's, only {' and '.join(GPT2)} are read")
            try:
                self._tokenizer = Gpt2.from_pretrained(source, local_files_only=True)
            except OSError:  # not fetched before
                self._tokenizer = Gpt2.from_pretrained(source, local_files_only=offline())
            if len(self._tokenizer) < 256:  # an empty folder gives an empty vocabulary
                raise ValueError("no vocabulary")
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"GPT-2's tokeniser is neither in the folder {source!r} nor found by that name on the hub; it is "
                "fetched once with network access, or read from a folder of its vocab.json and merges.txt"
            ) from error

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, context) int64, mask (B, context), True on real tokens."""
        tokens = torch.full((len(captions), self.context), self.filler)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, caption in enumerate(captions):
            ids = self._encode(caption)[: self.context]
            tokens[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids, dtype=torch.long), True
        return tokens, mask

    def unknown(self, caption: str) -> list[str]:
        """Nothing: bytes spell every word."""
        return []

    def truncated(self, caption: str) -> bool:
        """Whether `caption` has more tokens than `context`."""
        return len(self._encode(caption)) > self.context

    def _encode(self, caption: str) -> list[int]:
        ids: list[int] = self._tokenizer(caption.lower())["input_ids"]
        return ids
