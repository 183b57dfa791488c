"""Reading CLIP as OpenAI and as transformers save it into `ClipEncoder`: both towers, or the one that reads.

transformers keeps the towers in two folders, and queries, keys and values apart.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from t2i.keymaps.flat import Entry, Layout, transposed
from t2i.stages.clip.model import OPENAI_MEAN, OPENAI_STD, ClipConfig, ClipEncoder, TextConfig, VisionConfig
from t2i.stages.clip.presets import PRESETS
from t2i.text.tokenizers import TokenizerConfig

_SIZES = r"input_resolution|context_length|vocab_size"
_TABLES = r".*\.position_ids|logit_scale"
_SCALE = math.log(100)  # of every CLIP of OpenAI's; towers alone do not hold it


def layouts() -> Iterator[Layout]:
    """Every published CLIP in every dialect that it was published in."""
    for name, config in PRESETS.items():
        yield transformers_layout(name, config)
        if config.vision is not None:
            yield openai_layout(name, config)


def transformers_layout(name: str, config: ClipConfig) -> Layout:
    """Both towers with their projections in the words of transformers, joined, or the text tower alone."""
    constants = {"clip.logit_scale": _SCALE}
    return Layout("clip", name, config, ClipEncoder, tuple(_transformers(config)), _TABLES, constants)


def openai_layout(name: str, config: ClipConfig) -> Layout:
    """The names of OpenAI's own file, which open_clip shares."""
    entries = [
        Entry(entry.ours.removeprefix("clip."), entry.ours, bare=entry.bare)
        for entry in (*_transformers(config), Entry("", "clip.logit_scale", bare=True))
    ]
    return Layout("clip", name, config, ClipEncoder, tuple(entries), _SIZES)


def config_from(text: Mapping[str, Any], vision: Mapping[str, Any] | None) -> ClipConfig:
    """The config of a CLIP from those of transformers' CLIPTextModelWithProjection and CLIPVisionModelWithProjection.

    Raises ValueError for towers that open_clip's plain CLIP does not have.
    """
    for theirs in (text, vision or text):
        activation, width = theirs.get("hidden_act", "quick_gelu"), theirs["hidden_size"]
        if activation not in ("quick_gelu", "gelu") or theirs["intermediate_size"] != 4 * width:
            raise ValueError(
                f"a tower of hidden_act={activation!r} and intermediate_size={theirs['intermediate_size']}, but those "
                f"that are read have quick_gelu or gelu and {4 * width}"
            )
    tokenizer = TokenizerConfig(kind="clip", context=text["max_position_embeddings"])
    if text["vocab_size"] != tokenizer.vocab_size:
        raise ValueError(f"a vocabulary of {text['vocab_size']}, but CLIP's has {tokenizer.vocab_size}")
    tower = None if vision is None else VisionConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        head_width=vision["hidden_size"] // vision["num_attention_heads"],
    )  # fmt: skip
    return ClipConfig(
        embed_dim=text["projection_dim"],
        vision=tower,
        text=TextConfig(width=text["hidden_size"], layers=text["num_hidden_layers"], heads=text["num_attention_heads"]),
        tokenizer=tokenizer,
        quick_gelu=text.get("hidden_act", "quick_gelu") == "quick_gelu",
        unit_norm=False,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
    )


def _transformers(config: ClipConfig) -> Iterator[Entry]:
    yield Entry("text_model.embeddings.token_embedding", "clip.token_embedding")
    yield Entry("text_model.embeddings.position_embedding.weight", "clip.positional_embedding", bare=True)
    yield from _tower("text_model.encoder", "clip.transformer", config.text.layers)
    yield Entry("text_model.final_layer_norm", "clip.ln_final")
    yield transposed("text_projection.weight", "clip.text_projection")
    if config.vision is None:
        return
    assert isinstance(config.vision.layers, int)
    yield Entry("vision_model.embeddings.class_embedding", "clip.visual.class_embedding", bare=True)
    yield Entry("vision_model.embeddings.patch_embedding", "clip.visual.conv1")
    yield Entry("vision_model.embeddings.position_embedding.weight", "clip.visual.positional_embedding", bare=True)
    yield Entry("vision_model.pre_layrnorm", "clip.visual.ln_pre")
    yield from _tower("vision_model.encoder", "clip.visual.transformer", config.vision.layers)
    yield Entry("vision_model.post_layernorm", "clip.visual.ln_post")
    yield transposed("visual_projection.weight", "clip.visual.proj")


def _tower(foreign: str, ours: str, num_layers: int) -> Iterator[Entry]:
    names = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for i in range(num_layers):
        theirs, mine = f"{foreign}.layers.{i}", f"{ours}.resblocks.{i}"
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            yield Entry(parts, f"{mine}.attn.in_proj_{kind}", bare=True)
        yield from (Entry(f"{theirs}.{name}", f"{mine}.{own}") for name, own in names.items())
