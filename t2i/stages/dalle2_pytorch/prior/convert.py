"""Reading priors of DALLE2-pytorch into `LaionPrior`, of any size: all but the era shows in their keys and shapes, and
before 0.23.1 how many places a caption has; those of OpenAI's CLIP, 77, are assumed.

Versions 1.1.0 (era C) and 1.15.6 (era D) give the reference's numbers; others follow what its source says.
"""

from collections.abc import Iterator, Mapping

from t2i.diffusion.config import Diffusion
from t2i.keymaps.flat import Entry, Layout, Shape
from t2i.stages.dalle2_pytorch.prior.model import Era, LaionPrior, LaionPriorConfig, NullMode
from t2i.stages.dalle2_pytorch.prior.presets import PRESETS

_TABLES = r"noise_scheduler\..*|betas|\w*alphas_cumprod\w*|posterior_\w+|p2_loss_weight"
_IGNORED = rf"clip\..*|{_TABLES}|.*\.rotary_emb\.freqs|.*\.beta"  # a beta was a buffer of zeros
_CONTEXT = 77
_LAYER = "net.causal_transformer.layers"
_PADDING: dict[NullMode, str] = {"nulls": "net.null_text_encodings", "learned": "net.null_text_embed"}


def layouts() -> Iterator[Layout]:
    """The published prior."""
    for name, config in PRESETS.items():
        yield layout(name, config)


def layout(name: str, config: LaionPriorConfig, gain: str = "g") -> Layout:
    """The file of a prior, with what it calls the `gain` of a norm, "gamma" before 0.16.0; a whole CLIP, tables of the
    schedule and rotary frequencies in it say nothing."""
    return Layout("laion_prior", name, config, LaionPrior, tuple(_entries(config, gain)), _IGNORED)


def read(name: str, shapes: Mapping[str, Shape], era: Era) -> Layout:
    """The layout of a file with these keys and shapes. Raises KeyError for a shape that is missing."""
    return layout(name, config_from(shapes, era), "gamma" if _is_old(shapes) else "g")


def is_prior(keys: Mapping[str, object]) -> bool:
    """Whether these are keys of such a prior."""
    return "net.learned_query" in keys and f"{_LAYER}.0.0.null_kv" in keys


def eras_of(keys: Mapping[str, object]) -> tuple[Era, ...]:
    """The eras that a file with these keys may be of."""
    if "net.null_text_encodings" in keys:
        return ("D",)
    if "net.null_text_embed" in keys:
        return ("B", "C", "D")
    return ("A",) if _is_old(keys) else ("A", "B")


def config_from(shapes: Mapping[str, Shape], era: Era) -> LaionPriorConfig:
    """The config of a prior. Raises KeyError for a shape that is missing."""
    first, null = f"{_LAYER}.0", next((u for u, key in _PADDING.items() if key in shapes), "masked")
    num_steps, width = shapes["net.to_time_embeds.0.weight"]
    return LaionPriorConfig(
        era=era,
        null_mode=null,
        clip_dim=width,
        context=shapes[_PADDING[null]][1] if null in _PADDING else _CONTEXT,
        layers=1 + max(int(key.split(".")[3]) for key in shapes if key.startswith(f"{_LAYER}.")),
        heads=shapes["net.causal_transformer.rel_pos_bias.relative_attention_bias.weight"][1],
        head_width=shapes[f"{first}.0.null_kv"][1],
        mlp_ratio=shapes[f"{first}.1.5.weight"][1] // width,
        mlp_norm=f"{first}.1.3.{'gamma' if _is_old(shapes) else 'g'}" in shapes,
        diffusion=Diffusion(target="x0", variance="fixed_small", space="vector", num_steps=num_steps),
    )


def _is_old(keys: Mapping[str, object]) -> bool:
    return "net.causal_transformer.norm.gamma" in keys


def _entries(config: LaionPriorConfig, gain: str) -> Iterator[Entry]:
    def _gain(theirs: str, ours: str) -> Entry:
        return Entry(f"{theirs}.{gain}", f"{ours}.weight", bare=True)

    yield Entry("net.learned_query", "answer", bare=True)
    if config.null_mode == "nulls":
        yield Entry("net.null_text_embeds", "null_text", bare=True)
        yield Entry("net.null_image_embed", "null_image", bare=True)
    if config.null_mode in _PADDING:
        yield Entry(_PADDING[config.null_mode], "padding", bare=True)
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
