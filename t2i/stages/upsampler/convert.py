"""Reading upsamplers published by IDDPM, ADM and GLIDE (flat OpenAI key names) into `Upsampler`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from t2i.nn.foreign import Entry, RowOrder, flat_text, flat_unet, rekey
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig


def convert(state: Mapping[str, Tensor], config: UpsamplerConfig, order: RowOrder = "legacy") -> dict[str, Tensor]:
    """Weights of a published upsampler as a state dict of `Upsampler(config)`.

    Args:
        state: a flat state dict with OpenAI's key names.
        config: of the same network.
        order: rows of its fused attention projections; every published upsampler has "legacy".

    Raises:
        ValueError: naming every key that is missing, unexpected or of another shape.
    """
    return rekey(state, _entries(config, order), lambda: Upsampler(config))


def _entries(config: UpsamplerConfig, order: RowOrder) -> Iterator[Entry]:
    yield from flat_unet(config.unet, order)
    if config.num_classes is not None:
        yield Entry("label_emb", "classes")
    if config.text is not None:
        yield from flat_text(config.text)
        yield Entry("transformer_proj", "text_vector")
