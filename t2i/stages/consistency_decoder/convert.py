"""Reading OpenAI's consistency decoder into `ConsistencyDecoder`: as it was published, and as diffusers saves it.

L level, 0 the finest
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, prefixed
from t2i.keymaps.levels import DIFFUSERS, level_unet, unet_from
from t2i.nn.unet import UNetConfig
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig
from t2i.stages.consistency_decoder.presets import KL_F8, PRESETS

SHA256 = "c9cebd3132dd9c42936d803e33424145a748843c8f716c0814838bdc8a2fe7cb"
"""Of the published file, `decoder.pt`; it is part of its address."""
_TABLE = "weight"  # the learned timesteps, in a file of their own
_NORMS = {"gn_1": "norm1", "gn_2": "norm2"}
_LAYERS = {"f_1": "conv1", "f_2": "conv2", "f_t": "time", "f_s": "skip"}


def layouts() -> Iterator[Layout]:
    """The published network, in its own words with `blocks.` before them and without, and in those of diffusers."""
    for name, config in PRESETS.items():
        yield from (original_layout(name, config, prefix) for prefix in ("blocks.", ""))
        yield diffusers_layout(name, config)


def original_layout(name: str, config: ConsistencyDecoderConfig, prefix: str = "blocks.") -> Layout:
    """The network and its table of timesteps by the names of OpenAI's file."""
    entries = (*prefixed(prefix, _original(config.unet)), Entry(_TABLE, "unet.time_table.weight", bare=True))
    return Layout("consistency_decoder", name, config, ConsistencyDecoder, entries)


def diffusers_layout(name: str, config: ConsistencyDecoderConfig) -> Layout:
    """The same within diffusers' ConsistencyDecoderVAE, whose encoder is that of an autoencoder."""
    entries = tuple(prefixed("decoder_unet.", level_unet(config.unet, DIFFUSERS)))
    ignored = r"(encoder|quant_conv)\..*"
    return Layout("consistency_decoder", name, config, ConsistencyDecoder, entries, ignored)


def of_program(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published program by the names of `original_layout`: there the table of timesteps, the only tensor
    of its shape, is a part of the network."""
    unet = PRESETS["consistency-decoder"].unet
    tables = [key for key, value in tensors.items() if tuple(value.shape) == (unet.time_table, unet.channels)]
    return {_TABLE if [key] == tables else key: value for key, value in tensors.items()}


def config_from(theirs: Mapping[str, Any]) -> ConsistencyDecoderConfig:
    """The config of a consistency decoder from that of diffusers' ConsistencyDecoderVAE.

    Raises ValueError for another kind of U-Net, and for latents that are not Stable Diffusion's.
    """
    expected = {
        "latent_channels": KL_F8.channels,
        "scaling_factor": KL_F8.scaling,
        "decoder_in_channels": 3 + KL_F8.channels,
    }
    for key, value in expected.items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{key}={theirs[key]!r}, but the decoders that are read have {value!r}")
    unet = {key.removeprefix("decoder_"): value for key, value in theirs.items() if key.startswith("decoder_")}
    return ConsistencyDecoderConfig(unet=unet_from({"in_channels": 3 + KL_F8.channels} | unet), latents=KL_F8)


def _original(config: UNetConfig) -> Iterator[Entry]:
    last = len(config.multipliers) - 1
    yield from _module("embed_image.f", "unet.conv_in")
    yield from (e for i, name in ((0, "f_1"), (2, "f_2")) for e in _module(f"embed_time.{name}", f"unet.time.{i}"))
    for level in range(last + 1):
        for i in range(config.num_blocks):
            yield from _block(f"down_{level}_conv_{i}", f"unet.down.{level}.blocks.{i}")
        for i in range(config.num_blocks + 1):
            yield from _block(f"up_{level}_conv_{i}", f"unet.up.{level}.blocks.{i}")
        if level < last:
            yield from _block(f"down_{level}_downsamp", f"unet.down.{level}.resample")
        if level > 0:
            yield from _block(f"up_{level}_upsamp", f"unet.up.{level}.resample")
    yield from (e for i in (0, 1) for e in _block(f"mid_{i}", f"unet.mid.block{i + 1}"))
    yield from _module("output.gn", "unet.norm_out", weight="g")
    yield from _module("output.f", "unet.conv_out")


def _block(theirs: str, ours: str) -> Iterator[Entry]:
    for name, part in _NORMS.items():
        yield from _module(f"{theirs}.{name}", f"{ours}.{part}", weight="g")
    for name, part in _LAYERS.items():
        yield from _module(f"{theirs}.{name}", f"{ours}.{part}")


def _module(theirs: str, ours: str, weight: str = "w") -> Iterator[Entry]:
    """Weights and biases have one letter there."""
    yield Entry(f"{theirs}.{weight}", f"{ours}.weight", bare=True)
    yield Entry(f"{theirs}.b", f"{ours}.bias", bare=True)
