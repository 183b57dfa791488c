"""Reading the priors of Karlo, diffusers and Kandinsky into `Prior`: one network in two dialects.

`.ckpt` files keep the statistics of CLIP's embeddings in a file of their own, diffusers among the weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, flat_blocks, leading, prefixed
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.presets import PRESETS

STATISTICS = ("clip_mean", "clip_std")
"""What `t2i.convert.convert` calls the two tensors of a file of statistics."""
_PADDING = r"model\.padding_embedding"  # Kandinsky 2.1 puts it where nothing looks
_DIFFUSERS = {  # what the config of a prior like Karlo's may say
    "additional_embeddings": 4,
    "added_emb_type": "prd",
    "encoder_hid_proj_type": "linear",
    "time_embed_act_fn": "silu",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "embedding_proj_dim": None,
    "clip_embed_dim": None,
    "time_embed_dim": None,
}


def layouts() -> Iterator[Layout]:
    """Every published prior in every dialect that it was published in."""
    for name, config in PRESETS.items():
        if name in ("karlo-prior", "kandinsky-2.1-prior"):
            yield karlo_layout(name, config)
        if name != "karlo-prior":
            yield diffusers_layout(name, config)


def karlo_layout(name: str, config: PriorConfig) -> Layout:
    """A prior in Karlo's words, joined with its statistics."""
    return Layout("prior", name, config, Prior, tuple(_karlo(config)), _PADDING)


def diffusers_layout(name: str, config: PriorConfig) -> Layout:
    """A prior in the words of diffusers' PriorTransformer."""
    return Layout("prior", name, config, Prior, tuple(_diffusers(config)))


def config_from(theirs: Mapping[str, Any], clamp: float) -> PriorConfig:
    """The config of a diffusers PriorTransformer, with the `clip_sample_range` of its scheduler.

    Raises ValueError for a prior of another kind than Karlo's.
    """
    for key, expected in _DIFFUSERS.items():
        if theirs.get(key, expected) != expected:
            raise ValueError(f"{key}={theirs[key]!r}, but a prior like Karlo's has {expected!r}")
    return PriorConfig(
        clip_dim=theirs["embedding_dim"],
        text_width=theirs["embedding_dim"],
        context=theirs["num_embeddings"],
        width=theirs["num_attention_heads"] * theirs["attention_head_dim"],
        layers=theirs["num_layers"],
        heads=theirs["num_attention_heads"],
        clamp=clamp,
        unit_norm=False,
    )


def lacks_statistics(state: Mapping[str, Tensor]) -> bool:
    """Whether this is a prior in Karlo's words without the statistics that it needs."""
    return "model.prd_emb" in state and not state.keys() >= set(STATISTICS)


def _karlo(config: PriorConfig) -> Iterator[Entry]:
    names = {
        "time_embed.0": "time_embed.0",
        "time_embed.2": "time_embed.2",
        "text_enc_proj": "text_proj",
        "text_emb_proj": "clip_text_proj",
        "clip_img_proj": "noised_proj",
        "final_ln": "norm",
        "out_proj": "out",
    }
    entries = [Entry(theirs, ours) for theirs, ours in names.items()]
    entries += [Entry("positional_embedding", "positions", bare=True), leading("prd_emb", "answer")]
    yield from prefixed("model.", [*entries, *flat_blocks(config.layers, config.heads)])
    yield Entry("clip_mean", "mean", bare=True)
    yield Entry("clip_std", "std", _spread, bare=True)


def _diffusers(config: PriorConfig) -> Iterator[Entry]:
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "encoder_hidden_states_proj": "text_proj",
        "embedding_proj": "clip_text_proj",
        "proj_in": "noised_proj",
        "norm_out": "norm",
        "proj_to_clip_embeddings": "out",
    }
    yield from (Entry(theirs, ours) for theirs, ours in names.items())
    yield Entry("positional_embedding", "positions", bare=True)
    yield leading("prd_embedding", "answer")
    for i in range(config.layers):
        theirs, ours = f"transformer_blocks.{i}", f"transformer.blocks.{i}"
        yield Entry(f"{theirs}.norm1", f"{ours}.norm1")
        yield Entry(tuple(f"{theirs}.attn1.to_{part}" for part in "qkv"), f"{ours}.attention.qkv")
        yield Entry(f"{theirs}.attn1.to_out.0", f"{ours}.attention.proj")
        yield Entry(f"{theirs}.norm3", f"{ours}.norm2")
        yield Entry(f"{theirs}.ff.net.0.proj", f"{ours}.mlp.0")
        yield Entry(f"{theirs}.ff.net.2", f"{ours}.mlp.2")
    yield leading("clip_mean", "mean")
    yield leading("clip_std", "std")._replace(fix=lambda x: _spread(x[0]))


def _spread(std: Tensor) -> Tensor:
    """A standard deviation that was measured: diffusers fills up with zeros what a file lacks."""
    if not std.is_meta and not bool((std > 0).all()):
        raise ValueError("the statistics of CLIP's embeddings were never measured: a standard deviation is not above 0")
    return std
