"""CoCa: a picture and a sentence in one space, and the sentence written from the picture (Yu et al. 2022).

B batch · L tokens · P patches · Q captioning queries · D width · E embedding width · V entries of the vocabulary
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.decoding import Decoding
from t2i.core.errors import quoted
from t2i.core.seed import Streams, upload
from t2i.core.sizes import Heads, Layers, Length, Multiplier, Side, Width
from t2i.core.types import KeysValues, TextFeatures
from t2i.nn.generate import Cache, generate
from t2i.nn.layers import fit
from t2i.nn.transformer import Transformer, TransformerConfig
from t2i.stages.captioner.parts import AttentionalPooler, MultimodalBlock
from t2i.text.tokenizers import ClipTokenizer, TokenizerConfig
from t2i.text.words import END, PAD, START, UNKNOWN

TEMPERATURE = 0.07
"""Of the contrastive loss, at the start."""


class TowerConfig(Config):
    """Sizes of a transformer."""

    width: Width = Field(192, description="of its tokens")
    layers: Layers = Field(4, description="of the text decoder: of each of its halves")
    heads: Heads = Field(6, description="of every attention")
    mlp_ratio: Multiplier = Field(4.0, description="hidden width of the MLPs over width")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self

    def transformer(self, *, causal: bool) -> TransformerConfig:
        """The same for `Transformer`."""
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads, "mlp_ratio": self.mlp_ratio}
        return TransformerConfig(**sizes, causal=causal)  # type: ignore[arg-type]


class CaptionerConfig(Config):
    """Everything about a captioner. The paper's are in presets.py."""

    image_size: Side = Field(64, description="side of the pictures, in pixels")
    patch_size: Side = Field(8, description="pixels of a side that make one token")
    stem: tuple[Width, ...] = Field(
        (), max_length=8, description="channels of convolutions of stride 2 before pictures are cut (Xiao et al. 2021)"
    )
    vision: TowerConfig = Field(TowerConfig(), description="the image tower")
    text: TowerConfig = Field(TowerConfig(layers=2), description="the text decoder, unimodal and multimodal half")
    num_queries: Length = Field(64, description="tokens of a picture that captions are written from, 256 in the paper")
    embed_dim: Width = Field(128, description="width of the embeddings")
    tied: bool = Field(True, description="the last layer is the table of tokens; the paper's counts want two tables")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="kind words or clip")

    @field_validator("tokenizer")
    @classmethod
    def _marks(cls, tokenizer: TokenizerConfig) -> TokenizerConfig:
        if tokenizer.kind == "gpt2":
            raise ValueError("kind='gpt2' marks neither start nor end of a caption; words and clip do")
        return tokenizer

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} cannot be cut into patches of patch_size={self.patch_size}")
        if self.patch_size % (shrunk := 2 ** len(self.stem)):
            raise ValueError(f"patch_size={self.patch_size} is not a multiple of {shrunk}, by which the stem shrinks")
        return self


class Outputs(NamedTuple):
    """Of one pass: unit vectors `image` and `text` (B, E), and `logits` (B, L, V), each of the token that follows."""

    image: Tensor
    text: Tensor
    logits: Tensor


class Captioner(nn.Module):
    """`captioner(image, tokens, mask) → Outputs`; as an `Encoder` it compares, and `caption` writes.

    A pad id of its own, the last of the table of tokens, stands where the mask is off: CLIP's tokeniser pads with the
    token of "!".
    """

    tokenizer: Any
    multimodal: Any

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config, self.dim, self.image_size = config, config.embed_dim, config.image_size
        self.tokenizer = config.tokenizer.build()
        self.text_width = width = config.text.width
        ends = (3, *config.stem)
        self.stem = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(1, b), nn.GELU()) for a, b in pairwise(ends))
        )
        side = config.patch_size // 2 ** len(config.stem)
        self.patches = nn.Conv2d(ends[-1], config.vision.width, side, side)
        nn.init.normal_(self.patches.weight, std=(ends[-1] * side**2) ** -0.5)  # of unit gain
        self.places = nn.Parameter(torch.randn(self.num_patches, config.vision.width) * config.vision.width**-0.5)
        self.vision = Transformer(config.vision.transformer(causal=False))
        self.norm_vision = nn.LayerNorm(config.vision.width)
        heads = config.text.heads
        self.pool_caption = AttentionalPooler(config.num_queries, width, heads, config.vision.width)
        self.pool_contrast = AttentionalPooler(1, width, heads, width)
        self.to_image = nn.Linear(width, config.embed_dim, bias=False)

        self.pad = config.tokenizer.vocab_size
        self.tokens = nn.Embedding(self.pad + 1, width)
        self.positions = nn.Parameter(torch.randn(config.tokenizer.context, width) * width**-0.5)
        self.cls = nn.Parameter(torch.randn(width) * width**-0.5)
        self.unimodal = Transformer(config.text.transformer(causal=True))
        branch = width**-0.5 * (2 * config.text.layers) ** -0.5
        self.multimodal = nn.ModuleList(
            MultimodalBlock(config.text.transformer(causal=True), width, branch) for _ in range(config.text.layers)
        )
        self.norm_cls, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_text = nn.Linear(width, config.embed_dim, bias=False)
        self.head = None if config.tied else nn.Linear(width, self.pad, bias=False)
        tables = (self.tokens, self.to_image, self.to_text, self.head)
        for table in (t.weight for t in tables if isinstance(t, nn.Linear | nn.Embedding)):
            nn.init.normal_(table, std=width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(1 / TEMPERATURE).log())

    @property
    def num_patches(self) -> int:
        """P, tokens of a picture before they are pooled."""
        return (self.config.image_size // self.config.patch_size) ** 2

    # -- pictures ------------------------------------------------------------------------------------------------------

    def read_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of any size → what captions are written from, (B, Q, D)."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            sides = (self.image_size, self.image_size)
            image = F.interpolate(image.float(), size=sides, mode="bicubic", antialias=True).clamp(-1, 1)
        x = self.patches(self.stem(fit(image, self.cls))).flatten(2).transpose(1, 2)  # (B, P, W)
        return self.pool_caption(self.norm_vision(self.vision(x + self.places)))

    def embed_image(self, pooled: Tensor) -> Tensor:
        """(B, Q, D) → unit vectors (B, E), float32: one contrastive query over the captioning ones (cascade)."""
        return F.normalize(self.to_image(self.pool_contrast(pooled)[:, 0]).float(), dim=-1)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], any size → unit vectors (B, E)."""
        return self.embed_image(self.read_image(image))

    # -- sentences -----------------------------------------------------------------------------------------------------

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L), filled up with `pad`, and mask, on the model's device, L being that of the longest caption."""
        tokens, mask = self.tokenizer(captions)
        length = int(mask.sum(dim=1).max())
        tokens, mask = tokens[:, :length].masked_fill(~mask[:, :length], self.pad), mask[:, :length]
        return upload(tokens, self.cls.device), upload(mask, self.cls.device)

    def read_tokens(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The unimodal half: states (B, L, D) of tokens, which see those before them, and of the CLS token (B, D),
        which stands at the end and sees all real ones."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (B, L, D)
        x = torch.cat([x, self.cls.expand(len(x), 1, -1)], dim=1)  # (B, L + 1, D)
        x = self.unimodal(x, F.pad(mask, (0, 1), value=True))
        return x[:, :-1], x[:, -1]

    def embed_text(self, cls: Tensor) -> Tensor:
        """(B, D) → unit vectors (B, E), float32."""
        return F.normalize(self.to_text(fit(self.norm_cls(cls), self.to_text.weight)).float(), dim=-1)

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → unit vectors (B, E), states of the unimodal half (B, L, D), mask (B, L)."""
        tokens, mask = self.tokenize(captions)
        states, cls = self.read_tokens(tokens, mask)
        return TextFeatures(self.embed_text(cls), states, mask)

    # -- both ----------------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Outputs:
        """Pictures and their captions, as `tokenize` gives them, in one pass for both losses."""
        pooled = self.read_image(image)
        states, cls = self.read_tokens(tokens, mask)
        for block, picture in zip(self.multimodal, self._looked_at(pooled), strict=True):
            states, _ = block.look(states, picture)
        return Outputs(self.embed_image(pooled), self.embed_text(cls), self._logits(states))

    def _looked_at(self, pooled: Tensor) -> tuple[KeysValues, ...]:
        return tuple(block.cross.project(pooled) for block in self.multimodal)

    def _logits(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            table = self.tokens.weight[: self.pad] if self.head is None else self.head.weight
            return F.linear(self.norm_out(fit(states, self.norm_out.weight)).float(), table.float())

    # -- writing -------------------------------------------------------------------------------------------------------

    def begin(self, image: Tensor) -> Cache:
        """Keys and values of pictures, for `step`."""
        return Cache(context=self._looked_at(self.read_image(image)))

    def step(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Tokens (B, n) after those in the cache → logits (B, V) of the next, and the cache with them. Marks that no
        caption contains have -inf."""
        first, half = cache.num_tokens, self.config.text.layers
        x = self.tokens(tokens) + self.positions[first : first + tokens.shape[1]]
        x, past = self.unimodal.extend(x, None, cache.past[:half] or None)
        for i, (block, picture) in enumerate(zip(self.multimodal, cache.context, strict=True)):
            x, read = block.look(x, picture, cache.past[half + i] if cache.past else None)
            past = (*past, read)
        logits = self._logits(x[:, -1])
        logits[:, marks(self.config.tokenizer)[1]] = -torch.inf
        return logits, Cache(past, cache.context)

    @torch.no_grad()
    def caption(
        self,
        image: Tensor,
        decoding: Decoding | None = None,
        streams: Streams | None = None,
        prompt: str = "",
    ) -> list[str]:
        """A caption for each picture.

        Args:
            image: (B, 3, H, W) in [-1, 1], any size.
            decoding: greedy if not given.
            streams: one random stream per picture; needed where `decoding` draws.
            prompt: words that every caption begins with.

        Raises:
            ValueError: captions longer than the network can read, words of the prompt that it does not know, or no
                streams to draw from.
        """
        end, _ = marks(self.config.tokenizer)
        if strange := self.tokenizer.unknown(prompt):
            words = ", ".join(strange)
            raise ValueError(f"prompt={quoted(prompt)} has words that this captioner does not know: {words}")
        tokens, mask = self.tokenizer([prompt])
        given: list[int] = tokens[0, mask[0]][:-1].tolist()  # the start and the prompt's own, without an end
        room = self.config.tokenizer.context - len(given)
        if self.tokenizer.truncated(prompt) or not room:
            raise ValueError(f"prompt={quoted(prompt)} is longer than the captions of this captioner")
        decoding = (decoding or Decoding()).within(room)
        prompts, cache = [given] * len(image), self.begin(image)
        written = generate(self.step, prompts, decoding, end=end, cache=cache, streams=streams, device=image.device)
        return [self.tokenizer.decode([*given[1:], *text]) for text in written]

    @torch.no_grad()
    def fingerprint(self) -> tuple[float, ...]:
        """Where the empty sentence is embedded: by these numbers stages recognise the encoder they were trained
        with."""
        return tuple(round(x, 4) for x in self.encode_text([""]).pooled[0, :16].tolist())


def marks(tokenizer: TokenizerConfig) -> tuple[int, list[int]]:
    """The token that ends a caption, and those that none contains."""
    return (END, [PAD, START, UNKNOWN]) if tokenizer.kind == "words" else (ClipTokenizer.end, [ClipTokenizer.start])
