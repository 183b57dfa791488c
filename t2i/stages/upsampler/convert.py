"""Reading upsamplers published by IDDPM, ADM and GLIDE (flat OpenAI key names) into `Upsampler`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from t2i.nn.foreign import Entry, Layout, RowOrder, flat_text, flat_unet, rekey
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
        if not name.startswith("dalle2"):
            yield Layout("upsampler", name, config, Upsampler, tuple(flat_entries(config, "legacy")))


def flat_entries(config: UpsamplerConfig, order: RowOrder) -> Iterator[Entry]:
    """Every module of an upsampler with its name in a flat list of OpenAI's."""
    yield from flat_unet(config.unet, order)
    if config.num_classes is not None:
        yield Entry("label_emb", "classes")
    if config.text is not None:
        yield from flat_text(config.text)
        yield Entry("transformer_proj", "text_vector")
