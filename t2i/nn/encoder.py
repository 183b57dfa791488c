"""The half of the U-Net that goes down, with its middle: the trunk of a classifier (Dhariwal & Nichol 2021).

Legend: B batch · C channels · H W pixels · L tokens · D width · p patch size · N heads · d head width.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i.core.config import Config
from t2i.core.sizes import MAX_LEVELS, Blocks, Channels, Heads, Multiplier, Side, Steps, Width
from t2i.core.types import Condition, KeysValues
from t2i.nn.attention import ImageAttention
from t2i.nn.layers import TimeOrder, timestep_embedding
from t2i.nn.resblock import ConvResample, Direction, DownPadding, ResBlock


class EncoderConfig(Config):
    """Everything that decides the shape and the numerics of an `Encoder`.

    Attributes:
        in_channels: of x_t.
        image_channels: channels of `Condition.image`, concatenated after x_t.
        channels, multipliers: level L has round(channels · multipliers[L]) channels; fractions are allowed.
        num_blocks: residual blocks per level going down; one more going up.
        attention: attend at these down-sampling factors of the U-Net's own grid (1, 2, 4 …).
        mid_attention: attend in the middle; without it and with no `attention` the net takes any size.
        num_heads, head_channels: give exactly one of the two.
        attention_positions: tell every attention layer where its pixels are; the published networks do not.
        context_dim: width of `Condition.sequence`, whose keys and values join every attention layer.
        scale_shift: the time vector modulates the second norm of a block, rather than being added before it.
        resample: change resolution inside a residual block, or with one convolution.
        down_padding: of the strided convolution, when `resample` is "conv".
        patch_size: fold p x p pixels into channels before the first convolution and unfold after the last.
        dropout: in every residual block.
        norm_groups, norm_eps: of every group norm.
        time_order, time_denominator_shift: see `timestep_embedding`.
        time_table: rows of a learned table of timesteps in place of sinusoids; whole timesteps below that alone.
        checkpointing: recompute every block in the backward pass instead of keeping its activations.
    """

    in_channels: Channels = 3
    image_channels: int = Field(default=0, ge=0, le=64)
    channels: Channels = 128
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 2, 3, 4), min_length=1, max_length=MAX_LEVELS)
    num_blocks: Blocks = 2
    attention: tuple[Side, ...] = Field(default=(2, 4, 8), max_length=MAX_LEVELS)
    mid_attention: bool = True
    num_heads: Heads | None = None
    head_channels: Width | None = None
    attention_positions: bool = False
    context_dim: Width | None = None
    scale_shift: bool = True
    resample: Literal["block", "conv"] = "block"
    down_padding: DownPadding = "symmetric"
    patch_size: int = Field(default=1, ge=1, le=64)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm_groups: Channels = 32
    norm_eps: float = Field(default=1e-5, ge=0, le=1)
    time_order: TimeOrder = "cos_sin"
    time_denominator_shift: int = Field(default=0, ge=0, le=1)
    time_table: Steps | None = None
    checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        attends = bool(self.attention) or self.mid_attention
        if attends and (self.num_heads is None) == (self.head_channels is None):
            raise ValueError(
                f"give one of num_heads and head_channels, got num_heads={self.num_heads}, "
                f"head_channels={self.head_channels}"
            )
        factors = [2**level for level in range(len(self.multipliers))]
        if unknown := set(self.attention) - set(factors):
            raise ValueError(f"attention at factors {sorted(unknown)}, but the levels have factors {factors}")
        if bad := [w for w in self.widths if w == 0 or w % self.norm_groups]:
            raise ValueError(f"level widths {bad} are not positive multiples of norm_groups={self.norm_groups}")
        at = [w for w, factor in zip(self.widths, factors, strict=True) if factor in self.attention]
        if bad := [w for w in at + self.mid_attention * [self.widths[-1]] if not self.heads(w) or w % self.heads(w)]:
            named = f"num_heads={self.num_heads}" if self.num_heads else f"head_channels={self.head_channels}"
            raise ValueError(f"the {bad[0]} channels of a level cannot be split into heads by {named}")
        if self.context_dim is not None and not attends:
            raise ValueError(f"context_dim={self.context_dim} needs attention somewhere, and there is none")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(round(m * self.channels) for m in self.multipliers)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding and of `Condition.vector`."""
        return 4 * self.channels

    @property
    def factor(self) -> int:
        """Height and width of x_t must be multiples of this."""
        return int(self.patch_size * 2 ** (len(self.multipliers) - 1))

    def heads(self, width: int) -> int:
        """Number of attention heads at a level of `width` channels."""
        return self.num_heads or width // (self.head_channels or width)


class Level(nn.Module):
    """One resolution of one side of the U-Net: residual blocks, attention after each or none, then a resampler."""

    def __init__(self, blocks: list[ResBlock], attentions: list[ImageAttention], resample: nn.Module | None) -> None:
        super().__init__()
        assert len(attentions) in (0, len(blocks))
        self.blocks: Any = nn.ModuleList(blocks)
        self.attentions: Any = nn.ModuleList(attentions)
        self.resample = resample


class Middle(nn.Module):
    """Residual block, attention (optional), residual block, at the coarsest resolution."""

    def __init__(self, block1: ResBlock, attention: ImageAttention | None, block2: ResBlock) -> None:
        super().__init__()
        self.block1, self.attention, self.block2 = block1, attention, block2


class Pass:
    """One evaluation of a network: blocks get the time vector, attention layers their own keys and values in turn."""

    def __init__(self, time: Tensor, condition: Condition, checkpointing: bool) -> None:
        self.time, self.mask = time, condition.mask
        self.keys_values = iter(condition.context) if condition.context is not None else None
        self.checkpointing = checkpointing and torch.is_grad_enabled()

    def block(self, module: nn.Module, x: Tensor) -> Tensor:
        return self.run(module, x, self.time)

    def attend(self, module: nn.Module, x: Tensor) -> Tensor:
        return self.run(module, x, next(self.keys_values) if self.keys_values is not None else None, self.mask)

    def run(self, module: nn.Module, *args: Tensor | KeysValues | None) -> Tensor:
        out: Any = checkpoint(module, *args, use_reentrant=False) if self.checkpointing else module(*args)
        return out


class Encoder(nn.Module):
    """`encoder(x_t, t, condition) → features of the coarsest level`; see `EncoderConfig`."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths, p = config.widths, config.patch_size
        self.time_table = nn.Embedding(config.time_table, config.channels) if config.time_table else None
        self.time = nn.Sequential(
            nn.Linear(config.channels, config.time_dim), nn.SiLU(), nn.Linear(config.time_dim, config.time_dim)
        )
        self.conv_in = nn.Conv2d((config.in_channels + config.image_channels) * p * p, widths[0], 3, padding=1)
        down, width = [], widths[0]
        for level, w in enumerate(widths):
            ins = [width] + [w] * (config.num_blocks - 1)
            down.append(self._level(level, ins, w, "down" if level < len(widths) - 1 else None))
            width = w
        self.mid = Middle(
            self._block(width, width),
            self._attention(width) if config.mid_attention else None,
            self._block(width, width),
        )
        self.down: Any = nn.ModuleList(down)

    def _block(self, in_channels: int, out_channels: int, direction: Direction | None = None) -> ResBlock:
        c = self.config
        return ResBlock(
            in_channels,
            out_channels,
            c.time_dim,
            scale_shift=c.scale_shift,
            direction=direction,
            dropout=c.dropout,
            norm_groups=c.norm_groups,
            norm_eps=c.norm_eps,
        )

    def _attention(self, width: int) -> ImageAttention:
        c = self.config
        return ImageAttention(
            width,
            c.heads(width),
            c.context_dim,
            norm_groups=c.norm_groups,
            norm_eps=c.norm_eps,
            positions=c.attention_positions,
        )

    def _level(self, level: int, ins: list[int], width: int, direction: Direction | None) -> Level:
        resample: nn.Module | None = None
        if direction is not None and self.config.resample == "block":
            resample = self._block(width, width, direction)
        elif direction is not None:
            resample = ConvResample(width, direction, self.config.down_padding)
        attends = 2**level in self.config.attention
        return Level([self._block(i, width) for i in ins], [self._attention(width) for _ in ins if attends], resample)

    def attentions(self) -> Iterator[ImageAttention]:
        """Every attention layer, in the order of the forward pass and of `Condition.context`."""
        for level in self.down:
            yield from level.attentions
        if self.mid.attention is not None:
            yield self.mid.attention

    def project(self, condition: Condition) -> Condition:
        """The same condition with keys and values of `sequence` for every attention layer, to be reused at every step.

        Raises:
            ValueError: if `sequence` is missing although the net attends to one, or has another width.
        """
        sequence, dim = condition.sequence, self.config.context_dim
        if dim is None:
            if sequence is not None:
                raise ValueError(f"a sequence of width {sequence.shape[-1]} is given, but the network attends to none")
            return condition
        if sequence is None or sequence.shape[-1] != dim:
            raise ValueError(
                f"expected a sequence of width {dim}, got {'none' if sequence is None else sequence.shape[-1]}"
            )
        return replace(condition, context=tuple(a.attention.project(sequence) for a in self.attentions()))

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """One evaluation of the network.

        Args:
            x_t: (B, in_channels, H, W), H and W multiples of `config.factor`.
            t: (B,) original timesteps, integer or fractional.
            condition: what the config asks for; `sequence` is projected here unless `project` has done it before.

        Returns:
            (B, C, H', W'), H' = H / `config.factor`

        Raises:
            ValueError: for sizes or conditions that do not fit the config.
        """
        return self._encode(*self._begin(x_t, t, condition))[-1]

    def _begin(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> tuple[Tensor, Pass]:
        """The checked input (B, C_in, H, W) with the condition's picture, and what every block is given beside it."""
        c, condition = self.config, condition or Condition()
        self._check_inputs(x_t, condition)
        if condition.context is None:
            condition = self.project(condition)
        x = x_t if condition.image is None else torch.cat([x_t, condition.image.to(x_t.dtype)], dim=1)
        if self.time_table is not None:
            embedding = self.time_table(t)
        else:
            order, shift = c.time_order, c.time_denominator_shift
            embedding = timestep_embedding(t, c.channels, order=order, denominator_shift=shift)
        time = self.time(embedding.to(next(self.time.parameters()).dtype))  # (B, D)
        vector = condition.vector
        time = F.silu(time if vector is None else time + vector.to(time.dtype))
        return x.to(self.conv_in.weight.dtype), Pass(time, condition, c.checkpointing)

    def _encode(self, x: Tensor, run: Pass) -> list[Tensor]:
        """Every output going down, for the way up, and last that of the middle."""
        x = self.conv_in(F.pixel_unshuffle(x, self.config.patch_size))  # (B, C, H/p, W/p)
        outputs = [x]
        for level in self.down:
            for i, module in enumerate(level.blocks):
                x = run.block(module, x)
                if level.attentions:
                    x = run.attend(level.attentions[i], x)
                outputs.append(x)
            if level.resample is not None:
                x = run.block(level.resample, x)
                outputs.append(x)
        x = run.block(self.mid.block1, x)
        if self.mid.attention is not None:
            x = run.attend(self.mid.attention, x)
        return [*outputs, run.block(self.mid.block2, x)]

    def _check_inputs(self, x_t: Tensor, condition: Condition) -> None:
        c = self.config
        if x_t.shape[1] != c.in_channels:
            raise ValueError(f"x_t has {x_t.shape[1]} channels, the network takes {c.in_channels}")
        if x_t.shape[2] % c.factor or x_t.shape[3] % c.factor:
            raise ValueError(f"height and width must be multiples of {c.factor}, got {tuple(x_t.shape[2:])}")
        channels = 0 if condition.image is None else condition.image.shape[1]
        if channels != c.image_channels:
            raise ValueError(f"the condition image has {channels} channels, the network takes {c.image_channels}")
        if condition.vector is not None and condition.vector.shape[-1] != c.time_dim:
            raise ValueError(f"the condition vector has width {condition.vector.shape[-1]}, expected {c.time_dim}")
        num_layers = sum(1 for _ in self.attentions())
        if condition.context is not None and len(condition.context) != num_layers:
            raise ValueError(f"keys and values for {len(condition.context)} layers, the network has {num_layers}")
