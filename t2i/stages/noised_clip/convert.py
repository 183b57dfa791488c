"""Reading the noised CLIP published with GLIDE, in two files, into `NoisedClip`."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, rekey
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig
from t2i.stages.noised_clip.presets import PRESETS

_MARKS = {"image": "blocks.input.w_t", "text": "blocks.input.w_voc"}


def convert(files: Iterable[Mapping[str, Tensor]], config: NoisedClipConfig) -> dict[str, Tensor]:
    """Weights of a published noised CLIP as a state dict of `NoisedClip(config)`.

    Args:
        files: the state dicts of the image encoder and of the text encoder, in any order.
        config: of the same network.

    Raises:
        ValueError: naming keys that are missing, unknown or of another shape, `image.` or `text.` before them.
    """
    return rekey(join(files), entries(config), lambda: NoisedClip(config))


def layouts() -> Iterator[Layout]:
    """Every published noised CLIP, its two files being read by `join`."""
    for name, config in PRESETS.items():
        yield Layout("noised_clip", name, config, NoisedClip, tuple(entries(config)))


def join(files: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Both encoders in one state dict. They name their blocks alike, so `image.` and `text.` are put before.

    Raises:
        ValueError: for a file that is neither.
    """
    joined: dict[str, Tensor] = {}
    for state in files:
        tower = tower_of(state)
        if tower is None:
            raise ValueError(f"no encoder of a noised CLIP: it lacks both {' and '.join(map(repr, _MARKS.values()))}")
        joined |= {f"{tower}.{key}": value for key, value in state.items()}
    return joined


def tower_of(state: Mapping[str, Tensor]) -> str | None:
    """Which encoder of a noised CLIP this is, image or text; None for neither."""
    return next((name for name, key in _MARKS.items() if key in state), None)


def entries(config: NoisedClipConfig) -> Iterator[Entry]:
    """Every tensor of both encoders with its name in what `join` returns."""
    yield Entry("image.blocks.input.w_t", "image.times.weight", bare=True)
    yield Entry("image.blocks.input.patch_proj", "image.patches.weight", bare=True)
    yield Entry("image.blocks.input.w_pos", "image.positions", bare=True)
    yield from _module("image.blocks.input.ln", "image.norm_in", "g")
    yield from _tower("image", config.vision.layers)
    yield Entry("text.blocks.input.w_voc", "text.tokens.weight", bare=True)
    yield Entry("text.blocks.input.w_pos", "text.positions", bare=True)
    yield from _tower("text", config.text.layers)


def _tower(name: str, num_layers: int) -> Iterator[Entry]:
    for i in range(num_layers):
        theirs, ours = f"{name}.blocks.block_{i}", f"{name}.transformer.blocks.{i}"
        attention = f"{theirs}.f_attn"
        yield from _module(f"{attention}.ln", f"{ours}.norm1", "g")
        q, k, v = (f"{attention}.f_{part}" for part in "qkv")
        yield Entry((f"{q}.w", f"{k}.w", f"{v}.w"), f"{ours}.attention.qkv.weight", bare=True)
        yield Entry((f"{q}.b", f"{v}.b"), f"{ours}.attention.qv_bias", bare=True)
        yield from _module(f"{attention}.f_c", f"{ours}.attention.proj")
        yield from _module(f"{theirs}.f_mlp.ln", f"{ours}.norm2", "g")
        yield from _module(f"{theirs}.f_mlp.f_1", f"{ours}.mlp.0")
        yield from _module(f"{theirs}.f_mlp.f_2", f"{ours}.mlp.2")
    yield from _module(f"{name}.blocks.output.ln", f"{name}.norm_out", "g")
    yield Entry(f"{name}.blocks.output.f.w", f"{name}.proj.weight", bare=True)


def _module(theirs: str, ours: str, weight: str = "w") -> Iterator[Entry]:
    yield Entry(f"{theirs}.{weight}", f"{ours}.weight", bare=True)
    yield Entry(f"{theirs}.b", f"{ours}.bias", bare=True)
