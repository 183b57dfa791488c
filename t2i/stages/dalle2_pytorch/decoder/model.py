"""The U-Net of DALLE2-pytorch, and what turns embeddings into its condition.

B batch · H W pixels · L tokens · D width of CLIP embeddings · W of CLIP's text states · S of the tokens · V of time
"""

from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config, renamed
from t2i.core.sizes import MAX_LEVELS, Blocks, Channels, Heads, Length, Side, Width
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.config import Diffusion, diffusion_section
from t2i.nn.layers import timestep_embedding
from t2i.stages.dalle2_pytorch.decoder.parts import GROUPS, Attention, Block, Down, Era, LinearAttention, Up

KERNELS = (3, 7, 15)  # of the first convolutions, half of the channels, a quarter, the rest


class LaionDecoderConfig(Config):
    """Everything about such a decoder."""

    era: Era = Field(description="of its attention, which no key shows")
    channels: Channels = 320
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 3, 4), min_length=1, max_length=MAX_LEVELS, description="level L has channels · multipliers[L] channels"
    )
    num_blocks: Blocks | tuple[Blocks, ...] = Field(
        4, description="residual blocks per level, beside the first; one number for all, or one for each"
    )
    attention: tuple[Annotated[int, Field(ge=0, lt=MAX_LEVELS)], ...] = Field(
        (1, 2, 3), description="levels that attend pixel to pixel; the others have a linear attention"
    )
    heads: Heads = Field(8, description="of both attentions")
    head_width: Width = 64
    context_dim: Width = Field(512, description="width S of the tokens")
    clip_dim: Width = Field(768, description="width D of CLIP's embeddings")
    clip_fingerprint: tuple[float, ...] = Field((), description="`ClipEncoder.fingerprint`, empty if unknown")
    clip_text_width: Width | None = Field(
        768, description="width W of CLIP's text states, which are read at the bottom alone; null for none"
    )
    context: Length = Field(256, description="how many of them")
    num_clip_tokens: Length = Field(4, description="made of an image embedding")
    num_time_tokens: Length = Field(2, description="made of time")
    memory_efficient: bool = Field(True, description="levels going down halve the resolution first, and not last")
    fold: bool = Field(False, description="how levels going down halve the resolution, see `Down`")
    image_size: Side = 64
    diffusion: Diffusion = Field(Diffusion(), description="what it was trained on; the target is eps")

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(diffusion_section(data), clip_mark="clip_fingerprint")

    @model_validator(mode="after")
    def _check(self) -> Self:
        factor = 2 ** (len(self.multipliers) - (not self.memory_efficient))
        if self.channels % GROUPS or self.image_size % factor:
            raise ValueError(
                f"channels={self.channels} must be a multiple of {GROUPS}, image_size={self.image_size} of {factor}"
            )
        if len(self.blocks) != len(self.multipliers):
            raise ValueError(f"num_blocks={self.num_blocks} for {len(self.multipliers)} levels")
        if unknown := set(self.attention) - set(range(len(self.multipliers))):
            raise ValueError(f"attention at levels {sorted(unknown)}, but there are {len(self.multipliers)}, from 0")
        self.diffusion.num_outputs(3)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks of every level, finest first, beside the first of each."""
        given = self.num_blocks
        return given if isinstance(given, tuple) else (given,) * len(self.multipliers)


class Level(nn.Module):
    """One resolution of one side: what leads into it, blocks, attention, what leads out of it."""

    def __init__(self, enter: nn.Module, blocks: list[Block], attention: nn.Module, leave: nn.Module) -> None:
        super().__init__()
        self.enter, self.attention, self.leave = enter, attention, leave
        self.blocks: Any = nn.ModuleList(blocks)


class LaionDecoder(nn.Module):
    """`decoder(x_t, t, decoder.condition(…)) → raw output`."""

    def __init__(self, config: LaionDecoderConfig) -> None:
        super().__init__()
        self.config = config
        c, widths, time_dim = config, config.widths, 4 * config.channels
        sizes = (c.channels // 2, c.channels // 4, c.channels - c.channels // 2 - c.channels // 4)
        self.conv_in = nn.ModuleList(nn.Conv2d(3, n, k, padding=k // 2) for n, k in zip(sizes, KERNELS, strict=True))
        self.time = nn.Linear(c.channels, time_dim)
        self.time_vector = nn.Linear(time_dim, time_dim)
        self.time_tokens = nn.Linear(time_dim, c.num_time_tokens * c.context_dim)
        self.clip_vector = nn.Linear(c.clip_dim, time_dim)
        self.clip_tokens = nn.Linear(c.clip_dim, c.num_clip_tokens * c.context_dim)
        self.null_vector = nn.Parameter(torch.randn(1, time_dim))
        self.null_tokens = nn.Parameter(torch.randn(1, c.num_clip_tokens, c.context_dim))
        if c.clip_text_width is not None:
            self.clip_text = nn.Linear(c.clip_text_width, c.context_dim)
            self.padding = nn.Parameter(torch.randn(1, c.context, c.context_dim))
        self.norm = nn.LayerNorm(c.context_dim)
        self.norm_mid = nn.LayerNorm(c.context_dim)
        self.block_in = Block(c.channels, c.channels, time_dim) if c.memory_efficient else None
        down, up, width = [], [], c.channels
        for level, w in enumerate(widths):
            context = c.context_dim if level > 0 else None
            inside = w if c.memory_efficient else width  # going down
            falls = [Block(inside, inside, time_dim, context if i else None) for i in range(c.blocks[level] + 1)]
            rises = [Block(inside + w, w, time_dim, context) for _ in range(c.blocks[level] + 1)]
            plain = c.memory_efficient or level == len(widths) - 1  # it leaves at its resolution
            enter = Down(width, w, c.fold) if c.memory_efficient else nn.Identity()
            attend = self._attention(level, inside)
            down.append(Level(enter, falls, attend, nn.Conv2d(inside, w, 1) if plain else Down(width, w, c.fold)))
            attend = self._attention(level, w)
            twice = Up(w, width) if c.memory_efficient or level else nn.Identity()
            up.append(Level(nn.Identity(), rises, attend, twice))
            width = w
        self.down: Any = nn.ModuleList(down)
        self.up: Any = nn.ModuleList(up)  # by level, finest first, like `down`
        self.mid1 = Block(width, width, time_dim, c.context_dim)
        self.mid_attention = Attention(width, c.heads, c.head_width, c.era)
        self.mid2 = Block(width, width, time_dim, c.context_dim)
        self.block_out = Block(2 * c.channels, c.channels, time_dim)
        self.conv_out = nn.Conv2d(c.channels, c.diffusion.num_outputs(3), 1)

    def _attention(self, level: int, width: int) -> nn.Module:
        c = self.config
        kind = Attention if level in c.attention else LinearAttention
        return kind(width, c.heads, c.head_width, c.era)

    def condition(self, image_embedding: Tensor, text: TextFeatures | None = None) -> Condition:
        """What the network is told: image embeddings (B, D), and what CLIP says of sentences; None for nothing.

        Returns:
            `vector` (B, V) and `sequence` (B, 4 + L, S), the tokens of the embedding and then those of the text.

        Raises:
            ValueError: for sentences that this network does not read.
        """
        vector = F.gelu(self.clip_vector(image_embedding))
        tokens = self.clip_tokens(image_embedding).unflatten(1, (self.config.num_clip_tokens, -1))
        return Condition(vector=vector, sequence=torch.cat([tokens, *self._text(text, len(tokens))], dim=1))

    def null_condition(self, num: int) -> Condition:
        """The unconditional branch of guidance: learned numbers instead of embedding and sentence."""
        tokens = torch.cat([self.null_tokens.expand(num, -1, -1), *self._text(None, num)], dim=1)
        return Condition(vector=self.null_vector.expand(num, -1), sequence=tokens)

    def _text(self, text: TextFeatures | None, num: int) -> list[Tensor]:
        """Tokens (B, L, S) of sentences, learned rows where there is no word; none if the network reads none."""
        if self.config.clip_text_width is None:
            if text is not None:
                raise ValueError("this decoder reads no sentences (clip_text_width=None)")
            return []
        if text is None:
            return [self.padding.expand(num, -1, -1)]
        words = text.padded(self.config.context)
        return [torch.where(words.mask[..., None], self.clip_text(words.sequence), self.padding)]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, 3, H, W) and timesteps (B,) → (B, 3 or 6, H, W), float32."""
        assert condition.sequence is not None
        assert condition.vector is not None
        c, dtype = self.config, self.time.weight.dtype
        embedding = timestep_embedding(t, c.channels, order="sin_cos", denominator_shift=1)
        hidden = F.gelu(self.time(embedding.to(dtype)))
        time = F.silu(self.time_vector(hidden) + condition.vector)  # (B, V)
        tokens = self.time_tokens(hidden).unflatten(1, (c.num_time_tokens, -1))
        whole = torch.cat([tokens, condition.sequence], dim=1)  # the text is seen in the middle alone
        context, mid = self.norm(whole[:, : c.num_time_tokens + c.num_clip_tokens]), self.norm_mid(whole)
        x = first = torch.cat([conv(x_t.to(dtype)) for conv in self.conv_in], dim=1)
        x, skips = x if self.block_in is None else self.block_in(x, time, context), []
        for level in self.down:
            x = level.enter(x)
            for i, block in enumerate(level.blocks):
                x = block(x, time, context)
                skips += [x] if i else []
            x = level.attention(x)
            skips.append(x)
            x = level.leave(x)
        x = self.mid2(self.mid_attention(self.mid1(x, time, mid)), time, mid)
        for level in reversed(self.up):
            for block in level.blocks:
                x = block(torch.cat([x, skips.pop()], dim=1), time, context)
            x = level.leave(level.attention(x))
        x = self.block_out(torch.cat([x, first], dim=1), time, context)
        return self.conv_out(x).float()
