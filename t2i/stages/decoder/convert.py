"""Reading decoders published by DDPM, IDDPM, ADM and GLIDE into `Decoder`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from t2i.nn.foreign import Entry, Layout, RowOrder, flat_text, flat_unet, rekey
from t2i.nn.foreign_levels import DIFFUSERS, DIFFUSERS_BEFORE_0_12, PESSER, level_unet
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.presets import PRESETS

NEW_ORDER = ("adm-64",)
"""Networks whose attention rows go all queries, all keys, all values; the others go head by head."""


def convert(state: Mapping[str, Tensor], config: DecoderConfig, order: RowOrder = "legacy") -> dict[str, Tensor]:
    """Weights of a published decoder as a state dict of `Decoder(config)`.

    Args:
        state: a flat state dict with OpenAI's key names.
        config: of the same network.
        order: rows of its fused attention projections; "new" only for ADM's 64 pixel model. A wrong order loads
            without complaint and gives wrong pictures.

    Raises:
        ValueError: naming every key that is missing, unexpected or of another shape.
    """
    return rekey(state, flat_entries(config, order), lambda: Decoder(config))


def layouts() -> Iterator[Layout]:
    """Every published decoder in every dialect that it was published in."""
    for name, config in PRESETS.items():
        if name.startswith("ddpm"):
            for names in (PESSER, DIFFUSERS, DIFFUSERS_BEFORE_0_12):
                yield Layout("decoder", name, config, Decoder, tuple(level_unet(config.unet, names)))
        elif not name.startswith("dalle2"):
            order: RowOrder = "new" if name in NEW_ORDER else "legacy"
            yield Layout("decoder", name, config, Decoder, tuple(flat_entries(config, order)))


def flat_entries(config: DecoderConfig, order: RowOrder) -> Iterator[Entry]:
    """Every module of a decoder with its name in a flat list of OpenAI's."""
    yield from flat_unet(config.unet, order)
    if config.num_classes is not None:
        yield Entry("label_emb", "classes")
    if config.text is not None:
        yield from flat_text(config.text)
        yield Entry("transformer_proj", "text_vector")
