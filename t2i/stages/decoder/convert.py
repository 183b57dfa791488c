"""Reading decoders published by DDPM, IDDPM, ADM, GLIDE and Karlo into `Decoder`.

C channels of the context · T context tokens made of one image embedding
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from einops import rearrange
from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, RowOrder, flat_ports, flat_unet, prefixed, rekey
from t2i.keymaps.levels import DIFFUSERS, DIFFUSERS_BEFORE_0_12, PESSER, level_unet, unet_from
from t2i.nn.ports import ClipImageConfig, ClipTextConfig, PortsConfig
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
        elif config.ports.clip_text is not None:
            yield from (karlo_layout(name, config), diffusers_layout(name, config))
        elif not name.startswith("dalle2"):
            order: RowOrder = "new" if name in NEW_ORDER else "legacy"
            yield Layout("decoder", name, config, Decoder, tuple(flat_entries(config, order)))


def flat_entries(config: DecoderConfig, order: RowOrder) -> Iterator[Entry]:
    """Every module of a decoder with its name in a flat list of OpenAI's."""
    yield from flat_unet(config.unet, order)
    yield from flat_ports(config.ports)


def karlo_layout(name: str, config: DecoderConfig) -> Layout:
    """Karlo's decoder, in one file."""
    ports = ("clip_emb", "text_feat_proj", "text_seq_proj.0", "text_seq_proj.1", "cf_param", "clip_tok_proj")
    entries = [*_clip_ports(config, *ports), *flat_unet(config.unet, "legacy")]
    return Layout("decoder", name, config, Decoder, tuple(prefixed("model.", entries)))


def diffusers_layout(name: str, config: DecoderConfig) -> Layout:
    """The same as diffusers' UNet2DConditionModel, joined with UnCLIPTextProjModel, which holds the text path."""
    ports = (
        "clip_image_embeddings_project_to_time_embeddings",
        "embedding_proj",
        "encoder_hidden_states_proj",
        "text_encoder_hidden_states_norm",
        "learned_classifier_free_guidance_embeddings",
        "clip_extra_context_tokens_proj",
    )
    entries = (*_clip_ports(config, *ports), *level_unet(config.unet, DIFFUSERS))
    return Layout("decoder", name, config, Decoder, entries)


def _clip_ports(
    config: DecoderConfig, vector: str, text_vector: str, states: str, norm: str, null: str, tokens: str
) -> Iterator[Entry]:
    """What CLIP says of pictures and sentences, by the names of others for each port."""
    names = {
        vector: "clip_image.vector",
        text_vector: "clip_text.vector",
        states: "clip_text.states.0",
        norm: "clip_text.states.1",
    }
    yield from (Entry(theirs, f"ports.{ours}") for theirs, ours in names.items())
    yield Entry(null, "ports.clip_image.nothing", bare=True)
    yield Entry(tokens, "ports.clip_image.tokens", _tokens_last(config))


def config_from(unet: Mapping[str, Any], text: Mapping[str, Any]) -> DecoderConfig:
    """The config of Karlo's decoder from those of its UNet2DConditionModel and its UnCLIPTextProjModel.

    Raises ValueError for another kind of U-Net.
    """
    dim = text["clip_embeddings_dim"]
    return DecoderConfig(
        unet=unet_from(unet),
        ports=PortsConfig(
            clip_image=ClipImageConfig(dim=dim, num_tokens=text["clip_extra_context_tokens"]),
            clip_text=ClipTextConfig(width=dim, dim=dim),
        ),
        image_size=unet["sample_size"],
    )


def _tokens_last(config: DecoderConfig) -> Callable[[Tensor], Tensor]:
    """Rows of the projection to image tokens: channel by channel there, token by token here."""
    assert config.ports.clip_image is not None
    num_tokens = config.ports.clip_image.num_tokens
    return lambda x: rearrange(x, "(c t) ... -> (t c) ...", t=num_tokens)
