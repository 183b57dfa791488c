"""Reading upsamplers published by IDDPM, ADM and GLIDE (flat OpenAI key names) and by Karlo into `Upsampler`."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, RowOrder, flat_ports, flat_unet, prefixed, rekey
from t2i.keymaps.levels import DIFFUSERS, level_unet, unet_from
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.stages.upsampler.presets import PRESETS


def convert(state: Mapping[str, Tensor], config: UpsamplerConfig, order: RowOrder = "legacy") -> dict[str, Tensor]:
    """Weights of a published upsampler as a state dict of `Upsampler(config)`.

    Args:
        state: a flat state dict with OpenAI's key names.
        config: of the same network.
        order: rows of its fused attention projections; every published upsampler has "legacy".

    Raises:
        ValueError: naming every key that is missing, unexpected or of another shape.
    """
    return rekey(state, flat_entries(config, order), lambda: Upsampler(config))


def layouts() -> Iterator[Layout]:
    """Every published upsampler."""
    for name, config in PRESETS.items():
        if config.last_step:
            yield from (karlo_layout(name, config), diffusers_layout(name, config))
        elif not name.startswith("dalle2"):
            yield Layout("upsampler", name, config, Upsampler, tuple(flat_entries(config, "legacy")))


def flat_entries(config: UpsamplerConfig, order: RowOrder) -> Iterator[Entry]:
    """Every module of an upsampler with its name in a flat list of OpenAI's."""
    yield from flat_unet(config.unet, order)
    yield from flat_ports(config.ports)


def karlo_layout(name: str, config: UpsamplerConfig) -> Layout:
    """Karlo's two networks, in one file."""
    entries = [
        *prefixed("model_first_steps.", flat_unet(config.unet, "legacy")),
        *prefixed("model_last_step.", flat_unet(config.unet, "legacy", "last.")),
    ]
    return Layout("upsampler", name, config, Upsampler, tuple(entries))


def diffusers_layout(name: str, config: UpsamplerConfig) -> Layout:
    """The same two as diffusers' UNet2DModel, each in a folder whose name precedes its keys."""
    entries = [
        *prefixed("super_res_first.", level_unet(config.unet, DIFFUSERS)),
        *prefixed("super_res_last.", level_unet(config.unet, DIFFUSERS, "last.")),
    ]
    return Layout("upsampler", name, config, Upsampler, tuple(entries))


def config_from(theirs: Mapping[str, Any], low_size: int) -> UpsamplerConfig:
    """The config of Karlo's two networks from that of diffusers for one of them; `low_size` is in none.

    Raises ValueError for another kind of U-Net.
    """
    unet = unet_from(theirs)
    karlo = PRESETS["karlo-256"].model_dump()
    return UpsamplerConfig.model_validate(
        karlo | {"unet": unet, "low_size": low_size, "image_size": theirs["sample_size"]}
    )
