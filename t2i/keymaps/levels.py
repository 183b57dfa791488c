"""Key lists that are grouped by level: U-Nets as pesser/pytorch_diffusion and as diffusers save them.

Both name the parts of one U-Net; they differ in words, in whether levels going up are counted from the finest or from
the coarsest, and in whether an attention layer is a linear or a 1 × 1 convolution.

L level, 0 the finest · R residual blocks per level
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from t2i.keymaps.flat import Entry
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
    downsample="downsample",
    upsample="upsample",
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
    downsample="downsamplers.0",
    upsample="upsamplers.0",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="conv_norm_out",
    in_block=("time_emb_proj", "conv_shortcut"),
    in_attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    kernel=0,
)
DIFFUSERS_BEFORE_0_12 = DIFFUSERS._replace(in_attention=("group_norm", "query", "key", "value", "proj_attn"))


def level_unet(config: UNetConfig, names: Names, ours: str = "unet.") -> Iterator[Entry]:
    """Every module of a checkpoint that is grouped by level, with its name here. Queries, keys and values are apart,
    each head by head, and so are the keys and values of a context."""
    num_levels = len(config.multipliers)
    yield from (Entry(theirs, f"{ours}time.{i}") for i, theirs in zip((0, 2), names.time, strict=True))
    if config.time_table is not None:  # only diffusers has such
        yield Entry("time_proj", f"{ours}time_table")
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
                    yield from _attention(config, attention, f"{ours}{side}.{level}.attentions.{i}", names)
        if level < num_levels - 1:
            resampler = f"{names.down.format(**place)}.{names.downsample}"
            yield from _resampler(config, resampler, f"{ours}down.{level}.resample", names)
        if level > 0:
            resampler = f"{names.up.format(**place)}.{names.upsample}"
            yield from _resampler(config, resampler, f"{ours}up.{level}.resample", names)
    first, attention, second = names.middle
    yield from _block(first, f"{ours}mid.block1", names)
    if config.mid_attention:
        yield from _attention(config, attention, f"{ours}mid.attention", names)
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


def _resampler(config: UNetConfig, foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    if config.resample == "block":
        yield from _block(foreign, ours, names)
    else:
        yield Entry(f"{foreign}.conv", f"{ours}.conv")


def _attention(config: UNetConfig, foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    yield from attention_entries(foreign, ours, names)
    if config.context_dim is not None:  # only diffusers has such
        yield Entry((f"{foreign}.add_k_proj", f"{foreign}.add_v_proj"), f"{ours}.attention.context")


def attention_entries(foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    """An attention layer over a picture, without a context."""
    norm, q, k, v, proj = (f"{foreign}.{part}" for part in names.in_attention)
    yield Entry(norm, f"{ours}.norm")
    yield Entry((q, k, v), f"{ours}.attention.qkv", kernel=names.kernel)
    yield Entry(proj, f"{ours}.attention.proj", kernel=names.kernel)


def unet_from(theirs: Mapping[str, Any]) -> UNetConfig:
    """The config of a U-Net as unCLIP's are, from that of diffusers' UNet2DModel or UNet2DConditionModel.

    Raises ValueError for anything in it that our U-Net does not do.
    """
    widths, context = theirs["block_out_channels"], theirs.get("cross_attention_dim")
    attends = ["Cross" in kind for kind in theirs["down_block_types"]]
    learned = theirs.get("time_embedding_type") == "learned"
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)]
    expected = {
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn" if context else "UNetMidBlock2D",
        "act_fn": "silu",
        "center_input_sample": False,
        "time_embedding_type": "learned" if learned else "positional",
        "mid_block_scale_factor": 1,
        "class_embed_type": "identity" if context else None,
        "addition_embed_type": None,
        "encoder_hid_dim": None,
        "only_cross_attention": False,
        "cross_attention_norm": None,
        "add_attention": bool(context),
    }
    for key, value in expected.items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{key}={theirs[key]!r}, but the networks that are read have {value!r}")
    return UNetConfig(
        out_channels=theirs["out_channels"],
        image_channels=theirs["in_channels"] - 3,
        channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        num_blocks=theirs["layers_per_block"],
        attention=tuple(2**level for level, a in enumerate(attends) if a),
        mid_attention=context is not None,
        head_channels=theirs["attention_head_dim"] if context else None,
        context_dim=context,
        scale_shift=theirs.get("resnet_time_scale_shift", "default") == "scale_shift",
        norm_groups=theirs.get("norm_num_groups", 32),
        norm_eps=theirs.get("norm_eps", 1e-5),
        time_order="cos_sin" if theirs.get("flip_sin_to_cos", True) else "sin_cos",
        time_denominator_shift=theirs.get("freq_shift", 0),
        time_table=theirs["num_train_timesteps"] if learned else None,
    )
