"""Reading weights that were saved under other names: flat OpenAI-style key lists to this package's names.

The grammar is shared by every pixel-space network of that lineage (`input_blocks.N`, `middle_block.N`,
`output_blocks.N`, numbered through all levels), so it lives below the stages. Nothing here reads files.

Legend: C channels · D width · N heads · d head width · L level · R residual blocks per level.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig

RowOrder = Literal["legacy", "new"]
"""Rows of a fused q, k, v projection: "legacy" goes head by head (q, k, v of the first head, then of the second …),
"new" has all queries, then all keys, then all values. Shapes agree, so a checkpoint must state its order."""


class Entry(NamedTuple):
    """One module of a foreign checkpoint, or one bare tensor if `bare`; `fix` brings its tensors into our layout."""

    foreign: str
    ours: str
    fix: Callable[[Tensor], Tensor] | None = None
    bare: bool = False


def rekey(state: Mapping[str, Tensor], entries: Iterable[Entry], model: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Rename and re-order a foreign state dict.

    Args:
        state: the foreign weights.
        entries: what they are called there and here.
        model: builds the module that the result is for; called without memory, to learn its keys and shapes.

    Returns:
        A state dict that loads strictly into `model()`.

    Raises:
        ValueError: naming every key that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in model().state_dict().items()}
    entries, missing, out = list(entries), [], {}
    for entry in entries:
        # A module without bias lacks that key on both sides; one of ours without a source is found below.
        for suffix in [""] if entry.bare else [".weight", ".bias"]:
            source, target = entry.foreign + suffix, entry.ours + suffix
            if source in state:
                out[target] = entry.fix(state[source]) if entry.fix else state[source]
            elif target in wanted:
                missing.append(source)
    used = {e.foreign + s for e in entries for s in ("", ".weight", ".bias")}
    problems = {
        "missing": missing,
        "unexpected": sorted(set(state) - used),
        "without a source": sorted(set(wanted) - set(out)) if not missing else [],
        "unknown to the model": sorted(set(out) - set(wanted)),
        "of another shape": [
            f"{k} {tuple(v.shape)} != {wanted[k]}"
            for k, v in out.items()
            if k in wanted and tuple(v.shape) != wanted[k]
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(keys[:8])}" for what, keys in problems.items() if keys)
        raise ValueError(f"the checkpoint does not fit the config. {listed}")
    return out


def rows_by_part(num_parts: int, num_heads: int, order: RowOrder = "legacy") -> Callable[[Tensor], Tensor]:
    """A function that turns the rows of a fused projection into part-major order and drops the axis of a 1-D kernel:
    (N·parts·d, D[, 1]) → (parts·N·d, D)."""

    def fix(x: Tensor) -> Tensor:
        x = x.squeeze(-1) if x.ndim == 3 else x
        if order == "new":
            return x
        return rearrange(x, "(n p d) ... -> (p n d) ...", n=num_heads, p=num_parts)

    return fix


def flat_unet(config: UNetConfig, order: RowOrder, ours: str = "unet.") -> Iterator[Entry]:
    """Every module of a flat U-Net checkpoint (lineage of IDDPM, ADM, GLIDE) with its name here."""
    num_levels, num_blocks = len(config.multipliers), config.num_blocks
    yield from (Entry(f"time_embed.{i}", f"{ours}time.{i}") for i in (0, 2))
    yield Entry("input_blocks.0.0", f"{ours}conv_in")
    for level in range(num_levels):
        first = 1 + level * (num_blocks + 1)
        yield from _level(
            config, order, level, f"{ours}down.{level}", [f"input_blocks.{first + i}" for i in range(num_blocks)]
        )
        if level < num_levels - 1:
            yield from _resampler(config, f"input_blocks.{first + num_blocks}.0", f"{ours}down.{level}.resample", "op")
    yield from _block("middle_block.0", f"{ours}mid.block1")
    if config.mid_attention:
        yield from _attention(config, order, config.widths[-1], "middle_block.1", f"{ours}mid.attention")
    yield from _block(f"middle_block.{2 if config.mid_attention else 1}", f"{ours}mid.block2")
    for level in range(num_levels):
        first = (num_levels - 1 - level) * (num_blocks + 1)
        names = [f"output_blocks.{first + i}" for i in range(num_blocks + 1)]
        yield from _level(config, order, level, f"{ours}up.{level}", names)
        if level > 0:
            child = 2 if 2**level in config.attention else 1
            yield from _resampler(config, f"{names[-1]}.{child}", f"{ours}up.{level}.resample", "conv")
    yield Entry("out.0", f"{ours}norm_out")
    yield Entry("out.2", f"{ours}conv_out")


def _level(config: UNetConfig, order: RowOrder, level: int, ours: str, names: Sequence[str]) -> Iterator[Entry]:
    for i, name in enumerate(names):
        yield from _block(f"{name}.0", f"{ours}.blocks.{i}")
        if 2**level in config.attention:
            yield from _attention(config, order, config.widths[level], f"{name}.1", f"{ours}.attentions.{i}")


def _block(foreign: str, ours: str) -> Iterator[Entry]:
    names = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "skip",
    }
    yield from (Entry(f"{foreign}.{theirs}", f"{ours}.{name}") for theirs, name in names.items())


def _attention(config: UNetConfig, order: RowOrder, width: int, foreign: str, ours: str) -> Iterator[Entry]:
    heads = config.heads(width)
    yield Entry(f"{foreign}.norm", f"{ours}.norm")
    yield Entry(f"{foreign}.qkv", f"{ours}.attention.qkv", rows_by_part(3, heads, order))
    yield Entry(f"{foreign}.proj_out", f"{ours}.attention.proj", rows_by_part(1, 1, "new"))
    if config.context_dim is not None:
        yield Entry(f"{foreign}.encoder_kv", f"{ours}.attention.context", rows_by_part(2, heads, order))


def _resampler(config: UNetConfig, foreign: str, ours: str, conv: str) -> Iterator[Entry]:
    if config.resample == "block":
        yield from _block(foreign, ours)
    else:
        yield Entry(f"{foreign}.{conv}", f"{ours}.conv")


def flat_text(config: TextConfig, ours: str = "text.") -> Iterator[Entry]:
    """Every tensor of the text transformer that GLIDE keeps beside its U-Net; its rows always go head by head."""
    yield Entry("positional_embedding", f"{ours}positions", bare=True)
    yield Entry("padding_embedding", f"{ours}padding", bare=True)
    yield Entry("token_embedding", f"{ours}tokens")
    for i in range(config.layers):
        theirs, mine = f"transformer.resblocks.{i}", f"{ours}transformer.blocks.{i}"
        yield Entry(f"{theirs}.ln_1", f"{mine}.norm1")
        yield Entry(f"{theirs}.attn.c_qkv", f"{mine}.attention.qkv", rows_by_part(3, config.heads))
        yield Entry(f"{theirs}.attn.c_proj", f"{mine}.attention.proj")
        yield Entry(f"{theirs}.ln_2", f"{mine}.norm2")
        yield Entry(f"{theirs}.mlp.c_fc", f"{mine}.mlp.0")
        yield Entry(f"{theirs}.mlp.c_proj", f"{mine}.mlp.2")
    yield Entry("final_ln", f"{ours}norm")
