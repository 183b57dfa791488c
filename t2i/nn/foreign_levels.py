"""Key lists that are grouped by level: DDPM's weights as pesser/pytorch_diffusion and as diffusers save them.

Both name the parts of one U-Net; they differ in words, in whether levels going up are counted from the finest or from
the coarsest, and in whether an attention layer is a linear or a 1 × 1 convolution.

L level, 0 the finest · R residual blocks per level
"""

from collections.abc import Iterator
from typing import NamedTuple

from t2i.nn.foreign import Entry
from t2i.nn.unet import UNetConfig


class Names(NamedTuple):
    """The words of one dialect; `{L}` stands for a level, `{U}` for a level counted from the coarsest, `{i}` for a
    block."""

    time: tuple[str, str]
    down: str
    up: str
    block: str
    attention: str
    downsample: str
    upsample: str
    middle: tuple[str, str, str]  # block, attention, block
    norm_out: str
    in_block: tuple[str, str]  # time projection, skip
    in_attention: tuple[str, str, str, str, str]  # norm, q, k, v, output
    kernel: int  # axes of size 1 of the attention's weights


PESSER = Names(
    time=("temb.dense.0", "temb.dense.1"),
    down="down.{L}",
    up="up.{L}",
    block="block.{i}",
    attention="attn.{i}",
    downsample="downsample.conv",
    upsample="upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm_out="norm_out",
    in_block=("temb_proj", "nin_shortcut"),
    in_attention=("norm", "q", "k", "v", "proj_out"),
    kernel=2,
)
DIFFUSERS = Names(
    time=("time_embedding.linear_1", "time_embedding.linear_2"),
    down="down_blocks.{L}",
    up="up_blocks.{U}",
    block="resnets.{i}",
    attention="attentions.{i}",
    downsample="downsamplers.0.conv",
    upsample="upsamplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="conv_norm_out",
    in_block=("time_emb_proj", "conv_shortcut"),
    in_attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    kernel=0,
)
DIFFUSERS_BEFORE_0_12 = DIFFUSERS._replace(in_attention=("group_norm", "query", "key", "value", "proj_attn"))


def level_unet(config: UNetConfig, names: Names, ours: str = "unet.") -> Iterator[Entry]:
    """Every module of a checkpoint that is grouped by level, with its name here. The network has `resample="conv"` and
    one attention head, for which the order of rows does not matter."""
    num_levels = len(config.multipliers)
    yield from (Entry(theirs, f"{ours}time.{i}") for i, theirs in zip((0, 2), names.time, strict=True))
    yield Entry("conv_in", f"{ours}conv_in")
    for level in range(num_levels):
        place = {"L": level, "U": num_levels - 1 - level}
        attends = 2**level in config.attention
        for side, theirs, count in (
            ("down", names.down.format(**place), config.num_blocks),
            ("up", names.up.format(**place), config.num_blocks + 1),
        ):
            for i in range(count):
                yield from _block(f"{theirs}.{names.block.format(i=i)}", f"{ours}{side}.{level}.blocks.{i}", names)
                if attends:
                    attention = f"{theirs}.{names.attention.format(i=i)}"
                    yield from _attention(attention, f"{ours}{side}.{level}.attentions.{i}", names)
        if level < num_levels - 1:
            yield Entry(f"{names.down.format(**place)}.{names.downsample}", f"{ours}down.{level}.resample.conv")
        if level > 0:
            yield Entry(f"{names.up.format(**place)}.{names.upsample}", f"{ours}up.{level}.resample.conv")
    first, attention, second = names.middle
    yield from _block(first, f"{ours}mid.block1", names)
    yield from _attention(attention, f"{ours}mid.attention", names)
    yield from _block(second, f"{ours}mid.block2", names)
    yield Entry(names.norm_out, f"{ours}norm_out")
    yield Entry("conv_out", f"{ours}conv_out")


def _block(foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    time, skip = names.in_block
    for theirs, part in (
        ("norm1", "norm1"),
        ("conv1", "conv1"),
        (time, "time"),
        ("norm2", "norm2"),
        ("conv2", "conv2"),
    ):
        yield Entry(f"{foreign}.{theirs}", f"{ours}.{part}")
    yield Entry(f"{foreign}.{skip}", f"{ours}.skip")


def _attention(foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    norm, q, k, v, proj = (f"{foreign}.{part}" for part in names.in_attention)
    yield Entry(norm, f"{ours}.norm")
    yield Entry((q, k, v), f"{ours}.attention.qkv", kernel=names.kernel)
    yield Entry(proj, f"{ours}.attention.proj", kernel=names.kernel)
