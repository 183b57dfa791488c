"""Reading priors of DALLE2-pytorch into `LaionPrior`, of any size: all but the era shows in their keys and shapes."""

from collections.abc import Iterator, Mapping

from t2i.nn.foreign import Entry, Layout, Shape
from t2i.stages.laion_prior.model import Era, LaionPrior, LaionPriorConfig
from t2i.stages.laion_prior.presets import PRESETS

_IGNORED = r"clip\..*|noise_scheduler\..*|.*\.rotary_emb\.freqs"
_LAYER = "net.causal_transformer.layers"


def layouts() -> Iterator[Layout]:
    """The published prior."""
    for name, config in PRESETS.items():
        yield layout(name, config)


def layout(name: str, config: LaionPriorConfig) -> Layout:
    """The file of a prior; a whole CLIP, tables of the schedule and rotary frequencies in it say nothing."""
    return Layout("laion_prior", name, config, LaionPrior, tuple(_entries(config)), _IGNORED)


def is_prior(keys: Mapping[str, object]) -> bool:
    """Whether these are keys of such a prior."""
    return "net.learned_query" in keys and f"{_LAYER}.0.0.null_kv" in keys


def era_of(keys: Mapping[str, object]) -> Era | None:
    """The era, where keys tell.

    Raises ValueError for weights of before 13 July 2022.
    """
    if "net.null_text_encodings" in keys:
        return "D"
    if "net.null_text_embed" not in keys:
        raise ValueError("a prior of before 13 July 2022 (eras A and B), whose attention is not read")
    return None


def config_from(shapes: Mapping[str, Shape], era: Era) -> LaionPriorConfig:
    """The config of a prior. Raises KeyError for a shape that is missing."""
    first, context = f"{_LAYER}.0", shapes["net.null_text_encodings" if era == "D" else "net.null_text_embed"][1]
    num_steps, width = shapes["net.to_time_embeds.0.weight"]
    return LaionPriorConfig(
        era=era,
        clip_dim=width,
        context=context,
        layers=1 + max(int(key.split(".")[3]) for key in shapes if key.startswith(f"{_LAYER}.")),
        heads=shapes["net.causal_transformer.rel_pos_bias.relative_attention_bias.weight"][1],
        head_width=shapes[f"{first}.0.null_kv"][1],
        mlp_ratio=shapes[f"{first}.1.5.weight"][1] // width,
        mlp_norm=f"{first}.1.3.g" in shapes,
        num_steps=num_steps,
    )


def _entries(config: LaionPriorConfig) -> Iterator[Entry]:
    yield Entry("net.learned_query", "answer", bare=True)
    if config.era == "D":
        yield Entry("net.null_text_embeds", "null_text", bare=True)
        yield Entry("net.null_image_embed", "null_image", bare=True)
    yield Entry("net.null_text_encodings" if config.era == "D" else "net.null_text_embed", "padding", bare=True)
    yield Entry("net.to_time_embeds.0", "times")
    yield Entry("net.causal_transformer.rel_pos_bias.relative_attention_bias", "bias")
    for i in range(config.layers):
        theirs, attention, mlp = f"{_LAYER}.{i}", f"attentions.{i}", f"mlps.{i}"
        yield Entry(f"{theirs}.0.null_kv", f"{attention}.null", bare=True)
        yield _gain(f"{theirs}.0.norm", f"{attention}.norm")
        yield Entry(f"{theirs}.0.to_q", f"{attention}.q")
        yield Entry(f"{theirs}.0.to_kv", f"{attention}.kv")
        yield Entry(f"{theirs}.0.to_out.0", f"{attention}.proj")
        yield _gain(f"{theirs}.0.to_out.1", f"{attention}.norm_out")
        yield _gain(f"{theirs}.1.0", f"{mlp}.norm")
        yield Entry(f"{theirs}.1.1", f"{mlp}.hidden")
        yield _gain(f"{theirs}.1.3", f"{mlp}.norm_mid")
        yield Entry(f"{theirs}.1.5", f"{mlp}.out")
    yield _gain("net.causal_transformer.norm", "norm")
    yield Entry("net.causal_transformer.project_out", "out")


def _gain(theirs: str, ours: str) -> Entry:
    return Entry(f"{theirs}.g", f"{ours}.weight", bare=True)
