"""Reading decoders of DALLE2-pytorch into `LaionDecoder`, of any size: all but the era and the side of its pictures
shows in their keys and shapes."""

from collections.abc import Iterator, Mapping

from t2i.diffusion.config import Diffusion
from t2i.keymaps.flat import Entry, Layout, Shape, prefixed
from t2i.stages.dalle2_pytorch.decoder.model import KERNELS, LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.decoder.parts import CROSS_HEADS, CROSS_WIDTH, Era
from t2i.stages.dalle2_pytorch.decoder.presets import PRESETS

_IGNORED = r"clip\..*|noise_schedulers\..*"
_UNET = "unets.0."


def layouts() -> Iterator[Layout]:
    """The published decoder."""
    for name, config in PRESETS.items():
        yield layout(name, config, wrapped=True)


def layout(name: str, config: LaionDecoderConfig, *, wrapped: bool) -> Layout:
    """The file of a decoder; until April 2023 a module `fn` was wrapped around its cross-attention. One that reads no
    text has a padding for it all the same."""
    entries = prefixed(_UNET, _entries(config, ".fn" if wrapped else ""))
    ignored = _IGNORED if config.clip_text_width is not None else rf"{_IGNORED}|.*\.null_text_embed"
    return Layout("laion_decoder", name, config, LaionDecoder, tuple(entries), ignored)


def is_decoder(keys: Mapping[str, object]) -> bool:
    """Whether these are keys of such a decoder."""
    return f"{_UNET}init_conv.convs.0.weight" in keys and f"{_UNET}mid_block1.block1.project.weight" in keys


def eras_of(keys: Mapping[str, object]) -> tuple[Era, ...]:
    """The eras that a file with these keys may be of: those of August 2022 and later fold pixels, those of April 2023
    wrap nothing."""
    folds = any(f"{_UNET}downs.0.{place}.1.weight" in keys for place in (0, 4))
    later = folds or f"{_UNET}mid_block1.cross_attn.null_kv" in keys
    return ("D",) if later else ("C", "D")


def read(name: str, shapes: Mapping[str, Shape], era: Era, image_size: int) -> Layout:
    """The layout of a file with these keys and shapes.

    Raises:
        KeyError: for a shape that is missing.
        ValueError: for another kind of U-Net of the same library.
    """
    s = {key.removeprefix(_UNET): shape for key, shape in shapes.items()}
    kernels = tuple(shape[-1] for key, shape in s.items() if key.startswith("init_conv.") and len(shape) > 1)
    if kernels != KERNELS or s["init_conv.convs.0.weight"][1] != 3 or "unets.1.init_conv.convs.0.weight" in shapes:
        raise ValueError("a U-Net that enlarges pictures, or several in one file, or one with other first convolutions")
    time_dim, channels = s["to_time_hiddens.1.weight"]
    levels = 1 + max(int(key.split(".")[1]) for key in s if key.startswith("downs."))
    widths = [s[f"ups.{levels - 1 - level}.0.block1.norm.weight"][0] for level in range(levels)]
    blocks = [len({k.split(".")[3] for k in s if k.startswith(f"downs.{level}.2.")}) for level in range(levels)]
    efficient = "downs.0.0.bias" in s or "downs.0.0.1.bias" in s
    heads_by_width, head_width = s["mid_attn.fn.fn.to_q.weight"][0], s["mid_attn.fn.fn.null_kv"][1]
    context_dim = s["norm_cond.weight"][0]
    wrapped = any(".cross_attn.fn." in key for key in s)
    inner, wide = s[f"mid_block1.cross_attn{'.fn' if wrapped else ''}.to_q.weight"][0], CROSS_HEADS * CROSS_WIDTH
    if inner != wide or time_dim != 4 * channels:
        raise ValueError(f"cross-attention of width {inner} and a time vector of {time_dim}, expected {wide} and 4 C")
    config = LaionDecoderConfig(
        era=era,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        num_blocks=blocks[0] if len({*blocks}) == 1 else tuple(blocks),
        attention=tuple(level for level in range(levels) if f"downs.{level}.3.fn.fn.null_kv" in s),
        heads=heads_by_width // head_width,
        head_width=head_width,
        context_dim=context_dim,
        clip_dim=s["image_to_tokens.0.weight"][1],
        clip_text_width=s["text_to_cond.weight"][1] if "text_to_cond.weight" in s else None,
        context=s.get("null_text_embed", (1, 256))[1],
        num_clip_tokens=s["null_image_embed"][1],
        num_time_tokens=s["to_time_tokens.0.weight"][0] // context_dim,
        memory_efficient=efficient,
        fold="downs.0.0.1.weight" in s or "downs.0.4.1.weight" in s,
        image_size=image_size,
        diffusion=Diffusion(
            variance="learned_range" if s["to_out.weight"][0] == 6 else "fixed_small",
            num_steps=shapes.get("noise_schedulers.0.betas", (1000,))[0],
        ),
    )
    return layout(name, config, wrapped=wrapped)


def _entries(config: LaionDecoderConfig, wrapped: str) -> Iterator[Entry]:
    yield from (Entry(f"init_conv.convs.{i}", f"conv_in.{i}") for i in range(len(KERNELS)))
    names = {
        "to_time_hiddens.1": "time",
        "to_time_tokens.0": "time_tokens",
        "to_time_cond.0": "time_vector",
        "image_to_tokens.0": "clip_tokens",
        "to_image_hiddens.0": "clip_vector",
        "norm_cond": "norm",
        "norm_mid_cond": "norm_mid",
        "text_to_cond": "clip_text",
        "to_out": "conv_out",
    }
    yield from (Entry(theirs, ours) for theirs, ours in names.items())
    yield Entry("null_image_hiddens", "null_vector", bare=True)
    yield Entry("null_image_embed", "null_tokens", bare=True)
    yield Entry("null_text_embed", "padding", bare=True)
    for theirs, ours in (
        ("init_resnet_block", "block_in"),
        ("mid_block1", "mid1"),
        ("mid_block2", "mid2"),
        ("final_resnet_block", "block_out"),
    ):
        yield from _block(theirs, ours, wrapped)
    yield from _attention("mid_attn.fn.fn", "mid_attention")
    levels = len(config.multipliers)
    for level in range(levels):
        down, up = f"downs.{level}", f"ups.{levels - 1 - level}"
        yield from _way_down(config, level)
        yield Entry(f"{up}.3.net.0", f"up.{level}.leave.conv")
        for theirs, first, ours in ((down, 1, "down"), (up, 0, "up")):
            yield from _block(f"{theirs}.{first}", f"{ours}.{level}.blocks.0", wrapped)
            for i in range(config.blocks[level]):
                yield from _block(f"{theirs}.{first + 1}.{i}", f"{ours}.{level}.blocks.{i + 1}", wrapped)
            if level in config.attention:
                yield from _attention(f"{theirs}.{first + 2}.fn.fn", f"{ours}.{level}.attention")
            else:
                yield from _linear_attention(f"{theirs}.{first + 2}.fn", f"{ours}.{level}.attention")


def _way_down(config: LaionDecoderConfig, level: int) -> Iterator[Entry]:
    """What leads into a level and out of it; of the two one halves the resolution, but in the last of those that do so
    when they leave."""
    down, folds = f"downs.{level}", ".1" if config.fold else ""
    if config.memory_efficient:
        yield Entry(f"{down}.0{folds}", f"down.{level}.enter.conv")
    if config.memory_efficient or level == len(config.multipliers) - 1:
        yield Entry(f"{down}.4", f"down.{level}.leave")
    else:
        yield Entry(f"{down}.4{folds}", f"down.{level}.leave.conv")


def _block(theirs: str, ours: str, wrapped: str) -> Iterator[Entry]:
    names = {
        "time_mlp.1": "time",
        "block1.project": "conv1",
        "block1.norm": "norm1",
        "block2.project": "conv2",
        "block2.norm": "norm2",
        "res_conv": "skip",
    }
    yield from (Entry(f"{theirs}.{name}", f"{ours}.{own}") for name, own in names.items())
    yield from _attention(f"{theirs}.cross_attn{wrapped}", f"{ours}.cross")


def _attention(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.null_kv", f"{ours}.null", bare=True)
    yield Entry(f"{theirs}.norm.g", f"{ours}.norm.weight", bare=True)
    yield Entry(f"{theirs}.to_q", f"{ours}.q")
    yield Entry(f"{theirs}.to_kv", f"{ours}.kv")
    yield Entry(f"{theirs}.to_out.0", f"{ours}.proj")
    yield Entry(f"{theirs}.to_out.1.g", f"{ours}.norm_out.weight", bare=True)


def _linear_attention(theirs: str, ours: str) -> Iterator[Entry]:
    yield _channel_gain(f"{theirs}.norm.g", f"{ours}.norm.weight")
    yield Entry(f"{theirs}.to_qkv", f"{ours}.qkv")
    yield Entry(f"{theirs}.to_out.0", f"{ours}.proj")
    yield _channel_gain(f"{theirs}.to_out.1.g", f"{ours}.norm_out.weight")


def _channel_gain(theirs: str, ours: str) -> Entry:
    return Entry(theirs, ours, lambda x: x.flatten(), bare=True, shape=lambda shape: (1, *shape, 1, 1))
