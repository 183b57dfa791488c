"""Reading decoders published by IDDPM, ADM and GLIDE (flat OpenAI key names) into `Decoder`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from t2i.nn.foreign import Entry, RowOrder, flat_text, flat_unet, rekey
from t2i.stages.decoder.model import Decoder, DecoderConfig


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
    return rekey(state, _entries(config, order), lambda: Decoder(config))


def _entries(config: DecoderConfig, order: RowOrder) -> Iterator[Entry]:
    yield from flat_unet(config.unet, order)
    if config.num_classes is not None:
        yield Entry("label_emb", "classes")
    if config.text is not None:
        yield from flat_text(config.text)
        yield Entry("transformer_proj", "text_vector")
