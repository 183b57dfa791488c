"""Flat U-Nets of sizes that nobody published, and priors of DALLE2-pytorch: what keys and shapes show of them, and what
must be told.

C channels · L level · R residual blocks per level
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

from pydantic import model_validator

from t2i.core.config import Config, load
from t2i.core.errors import DataError, UsageError, explain
from t2i.core.sizes import Heads, Side, Steps, Width
from t2i.keymaps.flat import Layout, RowOrder, Shape
from t2i.stages.dalle2_pytorch.decoder import convert as laion_decoder
from t2i.stages.dalle2_pytorch.prior import convert as laion_prior
from t2i.stages.dalle2_pytorch.prior.model import Era
from t2i.stages.decoder import convert as decoder
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.upsampler import convert as upsampler
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig


class Facts(Config):
    """What the weights of a U-Net do not show.

    Attributes:
        order: rows of the attention projections, see `RowOrder`.
        num_heads, head_channels: exactly one of the two.
        text_heads: of the text transformer, where there is one.
        image_size: side of the pictures.
        low_size, levels: of the small pictures of an upsampler, see `UpsamplerConfig`.
        schedule, num_steps, rescale_timesteps: of the diffusion process it was trained on.
        variance: where the network does not learn it.
        tokenizer: kind of the text transformer's tokeniser.
    """

    order: RowOrder
    num_heads: Heads | None = None
    head_channels: Width | None = None
    text_heads: Heads | None = None
    image_size: Side
    low_size: Side | None = None
    levels: Literal["rounded", "truncated"] | None = None
    schedule: Literal["linear", "cosine"]
    num_steps: Steps
    rescale_timesteps: bool
    variance: Literal["fixed_small", "fixed_large"] | None = None
    tokenizer: Literal["gpt2", "clip"] = "gpt2"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.num_heads is None) == (self.head_channels is None):
            raise ValueError("give one of num_heads=N and head_channels=N")
        return self


ASKED = (
    "order=legacy|new, num_heads=N or head_channels=N, image_size=N, schedule=linear|cosine, num_steps=N and "
    "rescale_timesteps=true|false"
)
"""What is asked of the owner of an unknown network."""
NAME = "unpublished"
_NEEDED = {
    "input_blocks.0.0.weight", "input_blocks.1.0.emb_layers.1.weight", "output_blocks.0.0.in_layers.0.weight",
    "time_embed.0.weight", "out.2.weight",
}  # fmt: skip


ERAS: dict[Era, tuple[str, str]] = {
    "A": ("0.16.0", "up to version 0.16.0, until 4 July 2022"),
    "B": ("0.23.2", "0.16.2 to 0.23.2, until 12 July"),
    "C": ("1.4.2", "0.23.3 to 1.4.2, decoders to 1.1.0, until 29 July, as LAION's prior/latest.pth and decoder/v1.0.2"),
    "D": ("2", "1.4.3 or later"),
}
"""Eras of DALLE2-pytorch: the last version of each, and how to tell them."""


class LaionFacts(Config):
    """What the weights of DALLE2-pytorch's networks do not show: `era`, of their attention, and of a decoder's pictures
    the `image_size`."""

    era: Era | None = None
    image_size: Side = 64


def of_dalle2_pytorch(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are keys of a prior or of a decoder of DALLE2-pytorch."""
    return laion_prior.is_prior(shapes) or laion_decoder.is_decoder(shapes)


def read_dalle2_pytorch(shapes: Mapping[str, Shape], given: Sequence[str], where: str, version: str = "") -> Layout:
    """The layout of a network of DALLE2-pytorch, of any size; arguments and errors as `read_shapes`, and the `version`
    that some files tell."""
    facts, stage = load(None, given, LaionFacts), laion_prior if laion_prior.is_prior(shapes) else laion_decoder
    eras = stage.eras_of(shapes)
    era = _era_of(version)
    if era not in (None, *eras):
        raise DataError(f"{where}: of version {version}, era {era}, but only era {' or '.join(eras)} is read there")
    if stage is laion_decoder and era == "C" and _numbers(version) >= [1, 2]:
        raise DataError(f"{where}: of version {version}, but decoders of 1.2.0 to 1.4.2 are of neither era C nor D")
    if (era := facts.era or (eras[0] if len(eras) == 1 else era)) is None:
        choices = " or ".join(f"era={era} ({ERAS[era][1]})" for era in eras)
        raise UsageError(f"{where}: its keys do not tell how this network attends; give {choices}")
    if era not in eras:
        raise UsageError(f"{where}: era={era}, but its keys are those of era {' or '.join(eras)}")
    with explain(where, DataError):
        try:
            if stage is laion_prior:
                return laion_prior.read(NAME, shapes, era)
            return laion_decoder.read(NAME, shapes, cast("laion_decoder.Era", era), facts.image_size)
        except KeyError as error:
            raise DataError(f"{where}: not a whole network; it lacks {error}") from None
        except (IndexError, ArithmeticError):
            raise DataError(f"{where}: no network has weights of such shapes") from None


def _era_of(version: str) -> Era | None:
    """The era of a version of DALLE2-pytorch, such as "1.1.0"; None if it tells none."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        return None
    return next((era for era, (last, _) in ERAS.items() if _numbers(version) <= _numbers(last)), None)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def is_flat(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are keys of a flat U-Net, as IDDPM, ADM and GLIDE name them."""
    return shapes.keys() >= _NEEDED


def read_shapes(shapes: Mapping[str, Shape], given: Sequence[str], where: str) -> Layout:
    """The layout of a flat U-Net of any size.

    Args:
        shapes: of its weights, by key.
        given: `key=value` of `Facts`.
        where: the file, for errors.

    Raises:
        UsageError: a fact is missing or wrong.
        DataError: the weights are not those of a flat U-Net.
    """
    if not is_flat(shapes):
        raise DataError(f"{where}: not a U-Net with the key names of IDDPM, ADM and GLIDE")
    facts = load(None, given, Facts)
    in_channels = (*shapes["input_blocks.0.0.weight"], 0, 0)[1]
    extra = {3: 0, 6: 3, 7: 4, 10: 7}.get(in_channels)  # small picture 3, masked picture and mask 4
    if extra is None:
        raise DataError(f"{where}: the first convolution takes {in_channels} channels, expected 3, 6, 7 or 10")
    enlarges = extra in (3, 7)
    if missing := _missing(shapes, facts, enlarges):
        raise UsageError(f"{where}: give also {' and '.join(missing)}")
    with explain(where, DataError):
        try:
            common = _common(shapes, facts, extra)
        except KeyError as error:
            raise DataError(f"{where}: not a whole U-Net; it lacks {error}") from None
        except (IndexError, ArithmeticError):
            raise DataError(f"{where}: no U-Net has weights of such shapes") from None
        if not enlarges:
            small = DecoderConfig.model_validate(common)
            return Layout("decoder", NAME, small, Decoder, tuple(decoder.flat_entries(small, facts.order)))
        large = UpsamplerConfig.model_validate(common | {"low_size": facts.low_size, "levels": facts.levels})
        return Layout("upsampler", NAME, large, Upsampler, tuple(upsampler.flat_entries(large, facts.order)))


def _missing(shapes: Mapping[str, Shape], facts: Facts, enlarges: bool) -> list[str]:
    """Facts that this network, as its weights show, has and that were not given."""
    missing = []
    if enlarges and facts.low_size is None:
        missing.append("low_size=N, the side of the small pictures")
    if enlarges and facts.levels is None:
        missing.append("levels=rounded|truncated, how they became 8 bits")
    if shapes["out.2.weight"][:1] == (3,) and facts.variance is None:
        missing.append("variance=fixed_small|fixed_large")
    if "positional_embedding" in shapes and facts.text_heads is None:
        missing.append("text_heads=N, the heads of its text transformer")
    return missing


def _common(shapes: Mapping[str, Shape], facts: Facts, image_channels: int) -> dict[str, Any]:
    """Keys that decoders and upsamplers share."""
    unet, ports = _unet(shapes, facts, image_channels), dict[str, Any]()
    diffusion = facts.model_dump(include={"schedule", "num_steps", "rescale_timesteps"})
    if unet["out_channels"] == 3:
        diffusion["variance"] = facts.variance
    if image_channels in (4, 7):
        ports["masked"] = {}
    if "label_emb.weight" in shapes:
        ports["classes"] = {"num": shapes["label_emb.weight"][0]}
    if "positional_embedding" in shapes:
        context, width = shapes["positional_embedding"]
        layers = sum(key.endswith("attn.c_qkv.weight") for key in shapes)
        ports["text"] = {
            "width": width,
            "layers": layers,
            "heads": facts.text_heads,
            "vocab_size": shapes["token_embedding.weight"][0],
            "context": context,
            "tokenizer": {"kind": facts.tokenizer, "context": context},
        }
    return {"unet": unet, "diffusion": diffusion, "ports": ports, "image_size": facts.image_size}


def _unet(shapes: Mapping[str, Shape], facts: Facts, image_channels: int) -> dict[str, Any]:
    """The U-Net, from where its resamplers, its attention layers and its widths are."""
    num_out = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("output_blocks."))
    ends = [i for i in range(num_out) if _ends_level(shapes, i)]  # the last of the R + 1 entries of a level
    per_level = ends[0] + 1 if ends else num_out  # R + 1
    num_levels, channels = num_out // per_level, shapes["time_embed.0.weight"][1]
    first = [f"input_blocks.{1 + level * per_level}" for level in range(num_levels)]
    widths = [shapes[f"{name}.0.out_layers.3.weight"][0] for name in first]
    width, outputs = shapes["input_blocks.1.0.emb_layers.1.weight"][0], shapes["out.2.weight"][0]
    context = next((shape[1] for key, shape in shapes.items() if key.endswith("encoder_kv.weight")), None)
    return {
        "in_channels": 3,
        "out_channels": outputs,
        "image_channels": image_channels,
        "channels": channels,
        "multipliers": [w / channels for w in widths],
        "num_blocks": per_level - 1,
        "attention": [2**level for level, name in enumerate(first) if f"{name}.1.qkv.weight" in shapes],
        "mid_attention": "middle_block.1.qkv.weight" in shapes,
        "num_heads": facts.num_heads,
        "head_channels": facts.head_channels,
        "context_dim": context,
        "scale_shift": width == 2 * widths[0],
        "resample": "conv" if any(key.endswith(".op.weight") for key in shapes) else "block",
    }


def _ends_level(shapes: Mapping[str, Shape], i: int) -> bool:
    return any(
        f"output_blocks.{i}.{child}.{part}" in shapes
        for child in (1, 2)
        for part in ("in_layers.0.weight", "conv.weight")
    )
