"""A causal transformer over `START short SEP descriptive END`.

B batch · L tokens · D width · V entries of the vocabulary, the separator the last
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.decoding import Decoding
from t2i.core.seed import Streams, upload
from t2i.core.sizes import Heads, Layers, Multiplier, Width
from t2i.core.types import KeysValues
from t2i.nn.generate import Cache, generate
from t2i.nn.layers import timestep_embedding
from t2i.nn.transformer import Transformer, TransformerConfig
from t2i.text.tokenizers import ClipTokenizer, TokenizerConfig
from t2i.text.words import END, PAD, START, UNKNOWN


class RewriterConfig(Config):
    """Everything about a rewriter."""

    width: Width = Field(160, description="of its tokens")
    layers: Layers = Field(5, description="of its transformer")
    heads: Heads = Field(5, description="of every attention")
    mlp_ratio: Multiplier = Field(4.0, description="hidden width of the MLPs over width")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the tokens' features that training hides")
    tokenizer: TokenizerConfig = Field(
        TokenizerConfig(), description="kind words or clip; its context is that of each of the two sentences"
    )

    @field_validator("tokenizer")
    @classmethod
    def _marks(cls, tokenizer: TokenizerConfig) -> TokenizerConfig:
        if tokenizer.kind == "gpt2":
            raise ValueError("kind='gpt2' marks neither start nor end of a sentence; words and clip do")
        return tokenizer

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self

    @property
    def length(self) -> int:
        """Tokens of the longest pair: start, two sentences, what parts and what ends them."""
        return 2 * self.tokenizer.context - 1


class Rewriter(nn.Module):
    """`rewriter.rewrite(["a red cube"])` → `["the picture shows a small shiny red cube. it stands …"]`."""

    def __init__(self, config: RewriterConfig) -> None:
        super().__init__()
        self.config = config
        sizes = {"width": config.width, "layers": config.layers, "heads": config.heads, "mlp_ratio": config.mlp_ratio}
        self.separator = config.tokenizer.vocab_size
        self.tokens = nn.Embedding(self.separator + 1, config.width)
        self.positions = nn.Parameter(timestep_embedding(torch.arange(config.length), config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(TransformerConfig(**sizes, causal=True))  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.tokens.weight, std=config.width**-0.5)  # also the last layer

    @property
    def tokenizer(self) -> Any:
        """What it reads and writes in."""
        return self.config.tokenizer.build()

    def pairs(self, shorts: Sequence[str], longs: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) of pairs, as long as the longest, and where they are of the second sentence or its end."""
        rows = [(self._prompt(s), [*self._words(long), self._marks[1]]) for s, long in zip(shorts, longs, strict=True)]
        tokens = torch.full((len(rows), max(len(a) + len(b) for a, b in rows)), PAD)
        written = torch.zeros_like(tokens, dtype=torch.bool)
        for i, (a, b) in enumerate(rows):
            tokens[i, : len(a) + len(b)] = torch.tensor(a + b)
            written[i, len(a) : len(a) + len(b)] = True
        device = self.positions.device
        return upload(tokens, device), upload(written, device)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) → logits (B, L, V) of the token after each, float32."""
        return self.extend(tokens)[0]

    def extend(
        self, tokens: Tensor, context: Sequence[KeysValues] | None = None
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """`forward` of tokens after those that `context` holds, and the context with them."""
        first = context[0][0].shape[2] if context else 0
        x = self.tokens(tokens) * self.config.width**0.5 + self.positions[first : first + tokens.shape[1]]  # (B, L, D)
        x, grown = self.transformer.extend(self.dropout(x), None, context)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(self.norm(x.float()), self.tokens.weight.float()), grown

    @torch.no_grad()
    def rewrite(
        self, sentences: Sequence[str], *, temperature: float = 0.0, streams: Streams | None = None
    ) -> list[str]:
        """A descriptive sentence for each.

        Args:
            temperature: 0 takes the likeliest word at every place; above, words are drawn.
            streams: one random stream per sentence, to draw from.

        Raises ValueError for a temperature below 0, or without streams.
        """
        if not sentences:
            return []
        decoding = Decoding(max_length=self.config.tokenizer.context - 1, temperature=temperature)
        prompts, device = [self._prompt(sentence) for sentence in sentences], self.positions.device
        written = generate(self.step, prompts, decoding, end=self._marks[1], streams=streams, device=device)
        return [self.tokenizer.decode(tokens) for tokens in written]

    def step(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Tokens (B, n) after those in the cache → logits (B, V) of the next, and the cache with them. Marks that no
        sentence contains have -inf."""
        logits, past = self.extend(tokens, cache.past or None)
        never = [self.separator, *([PAD, START, UNKNOWN] if self._marks[0] == START else [self._marks[0]])]
        last = logits[:, -1]
        last[:, never] = -torch.inf
        return last, Cache(past)

    @property
    def _marks(self) -> tuple[int, int]:
        """The tokens that start and end a sentence."""
        return (START, END) if self.config.tokenizer.kind == "words" else (ClipTokenizer.start, ClipTokenizer.end)

    def _words(self, sentence: str) -> list[int]:
        """A sentence without what starts and ends it."""
        tokens, mask = self.tokenizer([sentence])
        return [i for i in tokens[0, mask[0]].tolist() if i not in self._marks]

    def _prompt(self, sentence: str) -> list[int]:
        return [self._marks[0], *self._words(sentence), self.separator]
