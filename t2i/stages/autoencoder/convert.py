"""Reading KL autoencoders as CompVis (latent diffusion, Stable Diffusion) and as diffusers save them: in the words of
`t2i.keymaps.levels`, since CompVis' are those of DDPM's port by pesser."""

from collections.abc import Iterator, Mapping
from typing import Any

from t2i.keymaps.flat import Entry, Layout, Shape, prefixed
from t2i.keymaps.levels import DIFFUSERS, DIFFUSERS_BEFORE_0_12, PESSER, Names, attention_entries
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig
from t2i.stages.autoencoder.presets import PRESETS, SCALE, SDXL

_LOSS = r"loss\..*"  # discriminator, LPIPS and log variance of a training
_OTHERS = r"(?!first_stage_model\.|{}\.).*|first_stage_model\.loss\..*"  # networks that share the file, but one


COMPVIS = PESSER
DIALECTS = (COMPVIS, DIFFUSERS, DIFFUSERS_BEFORE_0_12, DIFFUSERS_BEFORE_0_12._replace(kernel=2))


def layouts() -> Iterator[Layout]:
    """Every published autoencoder in every dialect; CompVis' also beside the other networks of a latent diffusion, by
    whose text encoder Stable Diffusion XL is told from its forerunners."""
    known = {name: (config, SCALE.get(name, 1.0), "conditioner") for name, config in PRESETS.items()}
    known[SDXL[0]] = PRESETS["kl-f8"], SDXL[1], "cond_stage_model"
    for name, (config, scale, not_beside) in known.items():
        for names in DIALECTS:
            yield layout(name, config, names, scale)
        entries = tuple(prefixed("first_stage_model.", _entries(config, COMPVIS)))
        yield Layout("autoencoder", name, config, Autoencoder, entries, _OTHERS.format(not_beside), _constants(scale))


def layout(name: str, config: AutoencoderConfig, names: Names, scale: float = 1.0, shift: float = 0.0) -> Layout:
    """One dialect; `scale` and `shift` are what the latents' users published."""
    entries = tuple(_entries(config, names))
    return Layout("autoencoder", name, config, Autoencoder, entries, _LOSS, _constants(scale, shift))


def diffusers_layout(name: str, theirs: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Layout:
    """The network of a folder of diffusers from its `config.json`, in the words of its weights' `shapes`.

    Raises ValueError for a config that says something that no network here does.
    """
    config, query = config_from(theirs), "encoder.mid_block.attentions.0.query.weight"
    names = DIFFUSERS
    if query in shapes:
        names = DIFFUSERS_BEFORE_0_12._replace(kernel=len(shapes[query]) - 2)
    scale, shift = theirs.get("scaling_factor", SCALE["kl-f8"]), theirs.get("shift_factor")
    return layout(name, config, names, float(scale), float(shift or 0.0))


def config_from(theirs: Mapping[str, Any]) -> AutoencoderConfig:
    """The config of an autoencoder from that of diffusers' AutoencoderKL.

    Raises ValueError for anything in it that ours does not do.
    """
    widths, latents = theirs["block_out_channels"], theirs["latent_channels"]
    expected = {
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "latents_mean": None,
        "latents_std": None,
    }
    for key, value in expected.items():
        found = theirs.get(key, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise ValueError(f"{key}={found!r}, but the autoencoders that are read have {value!r}")
    quant = theirs.get("use_quant_conv", True)
    if quant != theirs.get("use_post_quant_conv", True):
        raise ValueError(f"use_quant_conv={quant}, but use_post_quant_conv={not quant}; those that are read have both")
    return AutoencoderConfig(
        channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        num_blocks=theirs.get("layers_per_block", 1),
        z_channels=latents,
        embed_dim=latents,
        quant_convs=quant,
        mid_attention=theirs.get("mid_block_add_attention", True),
        norm_groups=theirs.get("norm_num_groups", 32),
        image_size=theirs.get("sample_size", 32),
    )


def _constants(scale: float, shift: float = 0.0) -> dict[str, float]:
    return {"scale": scale, "shift": shift}


def _entries(config: AutoencoderConfig, names: Names) -> Iterator[Entry]:
    num_levels = len(config.multipliers)
    for half, side, words, extra in (("encoder", "down", names.down, 0), ("decoder", "up", names.up, 1)):
        yield Entry(f"{half}.conv_in", f"{half}.conv_in")
        for level in range(num_levels):
            theirs = f"{half}.{words.format(L=level, U=num_levels - 1 - level)}"
            ours = f"{half}.{side}.{level}"
            for i in range(config.num_blocks + extra):
                yield from _block(f"{theirs}.{names.block.format(i=i)}", f"{ours}.blocks.{i}", names)
                if 2**level in config.attention:
                    yield from attention_entries(
                        f"{theirs}.{names.attention.format(i=i)}", f"{ours}.attentions.{i}", names
                    )
            if level < num_levels - 1 if side == "down" else level > 0:
                resampler = names.downsample if side == "down" else names.upsample
                yield Entry(f"{theirs}.{resampler}.conv", f"{ours}.resample.conv")
        first, attention, second = (f"{half}.{word}" for word in names.middle)
        yield from _block(first, f"{half}.mid.block1", names)
        if config.mid_attention:
            yield from attention_entries(attention, f"{half}.mid.attention", names)
        yield from _block(second, f"{half}.mid.block2", names)
        yield Entry(f"{half}.{names.norm_out}", f"{half}.norm_out")
        yield Entry(f"{half}.conv_out", f"{half}.conv_out")
    if config.quant_convs:
        yield from (Entry(name, name) for name in ("quant_conv", "post_quant_conv"))


def _block(foreign: str, ours: str, names: Names) -> Iterator[Entry]:
    yield from (Entry(f"{foreign}.{part}", f"{ours}.{part}") for part in ("norm1", "conv1", "norm2", "conv2"))
    yield Entry(f"{foreign}.{names.in_block[1]}", f"{ours}.skip")
