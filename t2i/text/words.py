"""A tokenizer whose tokens are whole words of a closed vocabulary, as the shapes world needs.

Legend: B batch · L tokens.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, START, END, UNKNOWN = 0, 1, 2, 3
_FIRST = 4
_PIECES = re.compile(r"\w+|[^\w\s]")
_BEFORE_MARK = re.compile(r" ([,.:;!?])")


class WordTokenizer:
    """Lower-cased words and punctuation marks; implements `t2i.core.types.Tokenizer`.

    Ids: 0 padding, 1 start, 2 end, 3 unknown, then the words in the order given. Punctuation that is not in the
    vocabulary is passed over.

    Args:
        words: the vocabulary, without repetition.
        context: length of every row of tokens, at least 2; longer captions are cut, the end token stays.

    Raises:
        ValueError: repeated words, words that a caption could not contain, or a context below 2.
    """

    num_special = _FIRST

    def __init__(self, words: Sequence[str], context: int = 64) -> None:
        if context < 2:
            raise ValueError(f"context must hold at least start and end, 2 tokens, got {context}")
        strange = [w for w in words if split(w) != [w]]
        if strange:
            raise ValueError(f"not single lower-case words: {', '.join(map(repr, strange[:5]))}")
        self.context, self.room = context, context - 2
        self.vocabulary = tuple(words)
        self._ids = {word: _FIRST + i for i, word in enumerate(self.vocabulary)}
        if len(self._ids) != len(self.vocabulary):
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} words, only {len(self._ids)} of them different"
            )

    def __len__(self) -> int:
        """Number of ids, special ones included."""
        return _FIRST + len(self.vocabulary)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, L) int64 and mask (B, L) bool, True from the start to the end token."""
        if isinstance(captions, str):
            raise ValueError(f"expected a list of captions, got one string {captions!r}")
        tokens = torch.full((len(captions), self.context), PAD)
        for row, caption in zip(tokens, captions, strict=True):
            ids = [self._ids.get(word, UNKNOWN) for word in self._split(caption)[: self.room]]
            row[: len(ids) + 2] = torch.tensor([START, *ids, END])
        return tokens, tokens != PAD

    def decode(self, ids: Sequence[int]) -> str:
        """Words and marks as they are written; special tokens are passed over."""
        words = " ".join(self.vocabulary[i - _FIRST] for i in ids if i >= _FIRST)
        return _BEFORE_MARK.sub(r"\1", words)

    def unknown(self, caption: str) -> list[str]:
        """Words of `caption` that the vocabulary lacks, in order of appearance."""
        return [word for word in self._split(caption) if word not in self._ids]

    def truncated(self, caption: str) -> bool:
        """Whether `caption` has more words than fit between start and end."""
        return len(self._split(caption)) > self.room

    def _split(self, caption: str) -> list[str]:
        return [piece for piece in split(caption) if piece in self._ids or piece[0].isalnum() or piece[0] == "_"]


def split(caption: str) -> list[str]:
    """Lower-cased words and single punctuation marks."""
    return _PIECES.findall(caption.lower())
