"""Reading weights that were saved under other names: flat OpenAI-style key lists to this package's names.

The grammar is shared by every pixel-space network of that lineage (`input_blocks.N`, `middle_block.N`,
`output_blocks.N`, numbered through all levels), so it lives below the stages. Nothing here reads files.

Legend: C channels · D width · N heads · d head width · L level · R residual blocks per level.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.nn.encoder import EncoderConfig
from t2i.nn.ports import PortsConfig
from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig

RowOrder = Literal["legacy", "new"]
"""Rows of a fused q, k, v projection: "legacy" goes head by head (q, k, v of the first head, then of the second …),
"new" has all queries, then all keys, then all values. Shapes agree, so a checkpoint must state its order."""


Shape = tuple[int, ...]
Value = TypeVar("Value")


class Entry(NamedTuple):
    """One module of ours and where its tensors stand in a foreign checkpoint.

    `foreign` names the module there, or several whose rows follow each other here (separate q, k, v). `kernel` is the
    number of axes of size 1 that end its weight there and not here (a linear layer stored as a 1 × 1 convolution);
    `fix` then brings rows into our order. `bare` tensors have no `.weight` and `.bias`. `shape` turns our shape into
    that of the file, where `fix` changes it.
    """

    foreign: str | tuple[str, ...]
    ours: str
    fix: Callable[[Tensor], Tensor] | None = None
    kernel: int = 0
    bare: bool = False
    shape: Callable[[Shape], Shape] | None = None

    def tensors(self, wanted: Mapping[str, Shape]) -> Iterator[tuple[list[str], str, Shape]]:
        """(foreign keys, our key, shape of each of the foreign tensors) of everything that `wanted` has of it."""
        names = (self.foreign,) if isinstance(self.foreign, str) else self.foreign
        for suffix in [""] if self.bare else [".weight", ".bias"]:
            if (shape := wanted.get(self.ours + suffix)) is not None:
                shape = self.shape(shape) if self.shape else shape
                shape = (shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape
                axes = (1,) * self.kernel if suffix == ".weight" else ()
                yield [name + suffix for name in names], self.ours + suffix, (*shape, *axes)


def leading(foreign: str, ours: str) -> Entry:
    """A bare tensor that has one more axis of size 1 there, before all others."""
    return Entry(foreign, ours, lambda x: x[0], bare=True, shape=lambda shape: (1, *shape))


def transposed(foreign: str, ours: str) -> Entry:
    """A bare matrix that stands there the other way round."""
    return Entry(foreign, ours, lambda x: x.T.contiguous(), bare=True, shape=lambda shape: shape[::-1])


def prefixed(prefix: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same modules in a file where every key starts with `prefix`."""
    for entry in entries:
        names = (entry.foreign,) if isinstance(entry.foreign, str) else entry.foreign
        yield entry._replace(foreign=tuple(prefix + name for name in names))


def shapes_of(model: Callable[[], nn.Module]) -> dict[str, Shape]:
    """Keys and shapes of a module, which is built without memory."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in model().state_dict().items()}


def foreign_shapes(entries: Iterable[Entry], wanted: Mapping[str, Shape]) -> dict[str, Shape]:
    """Keys and shapes of the foreign checkpoint that fits a module of the keys and shapes `wanted`."""
    return {key: shape for entry in entries for keys, _, shape in entry.tensors(wanted) for key in keys}


def modules(keys: Iterable[str]) -> frozenset[str]:
    """The modules that keys are of; bare tensors by their own names."""
    return frozenset(key.removesuffix(".weight").removesuffix(".bias") for key in keys)


def misfit(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> list[str]:
    """How a foreign checkpoint differs from the expected one, as lines such as `lacks 'out.2.bias'`; empty if it does
    not."""
    problems = [f"lacks {key!r}" for key in expected if key not in given]
    problems += [f"has the unknown {key!r}" for key in given if key not in expected]
    problems += [
        f"has {key!r} of shape {given[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in given and given[key] != shape
    ]
    return problems


def rekey(
    state: Mapping[str, Tensor],
    entries: Iterable[Entry],
    model: Callable[[], nn.Module],
    constants: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Rename and re-order a foreign state dict.

    Args:
        state: the foreign weights.
        entries: what they are called there and here.
        model: builds the module that the result is for.
        constants: values of those of our tensors that the file does not hold.

    Returns:
        A state dict that loads strictly into `model()`.

    Raises:
        ValueError: naming keys that are missing, unknown or of another shape.
    """
    entries, wanted = list(entries), shapes_of(model)
    problems = misfit(foreign_shapes(entries, wanted), {key: tuple(value.shape) for key, value in state.items()})
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"the checkpoint does not fit the config: it {'; '.join(problems[:6])}{more}")
    out: dict[str, Tensor] = {}
    for entry in entries:
        for sources, target, _ in entry.tensors(wanted):
            value = torch.cat([state[key] for key in sources]) if len(sources) > 1 else state[sources[0]]
            value = value.reshape(*value.shape[: value.ndim - entry.kernel]) if value.ndim > 1 else value
            out[target] = entry.fix(value) if entry.fix else value
    out |= {key: torch.full(wanted[key], value) for key, value in (constants or {}).items()}
    assert out.keys() == wanted.keys(), f"no foreign name for {sorted(wanted.keys() - out.keys())}"
    return out


@dataclass(frozen=True, eq=False)
class Layout:
    """A published network, and how one of its files names what is in it.

    Attributes:
        stage: the stage that runs it.
        name: of the network, as in `weights/index.yaml`.
        config: its whole configuration, with what no weight file shows.
        model: builds it from that.
        entries: its modules there and here.
        ignored: a regular expression of keys that say nothing: tables, and networks of others kept beside it.
        constants: values of those of our tensors that the file does not hold.
    """

    stage: str
    name: str
    config: Config
    model: Callable[[Any], nn.Module]
    entries: tuple[Entry, ...]
    ignored: str | None = None
    constants: Mapping[str, float] = field(default_factory=dict)

    def read(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """What counts of a file."""
        return {k: v for k, v in state.items() if self.ignored is None or not re.fullmatch(self.ignored, k)}

    @cached_property
    def keys(self) -> frozenset[str]:
        """Modules, and bare tensors, of the file."""
        return modules(n for e in self.entries for n in ((e.foreign,) if isinstance(e.foreign, str) else e.foreign))

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Keys and shapes of the file."""
        return foreign_shapes(self.entries, shapes_of(lambda: self.model(self.config)))

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `rekey`."""
        return rekey(self.read(state), self.entries, lambda: self.model(self.config), self.constants)


def rows_by_part(num_parts: int, num_heads: int, order: RowOrder = "legacy") -> Callable[[Tensor], Tensor]:
    """A function that turns the rows of a fused projection into part-major order, (N·parts·d, …) → (parts·N·d, …)."""

    def fix(x: Tensor) -> Tensor:
        return x if order == "new" else rearrange(x, "(n p d) ... -> (p n d) ...", n=num_heads, p=num_parts)

    return fix


def flat_encoder(config: EncoderConfig, order: RowOrder, ours: str) -> Iterator[Entry]:
    """Every module of the half that goes down and of the middle, as `flat_unet`; a classifier has no other."""
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


def flat_unet(config: UNetConfig, order: RowOrder, ours: str = "unet.") -> Iterator[Entry]:
    """Every module of a flat U-Net checkpoint (lineage of IDDPM, ADM, GLIDE) with its name here."""
    num_levels, num_blocks = len(config.multipliers), config.num_blocks
    yield from flat_encoder(config, order, ours)
    for level in range(num_levels):
        first = (num_levels - 1 - level) * (num_blocks + 1)
        names = [f"output_blocks.{first + i}" for i in range(num_blocks + 1)]
        yield from _level(config, order, level, f"{ours}up.{level}", names)
        if level > 0:
            child = 2 if 2**level in config.attention else 1
            yield from _resampler(config, f"{names[-1]}.{child}", f"{ours}up.{level}.resample", "conv")
    yield Entry("out.0", f"{ours}norm_out")
    yield Entry("out.2", f"{ours}conv_out")


def _level(config: EncoderConfig, order: RowOrder, level: int, ours: str, names: Sequence[str]) -> Iterator[Entry]:
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


def _attention(config: EncoderConfig, order: RowOrder, width: int, foreign: str, ours: str) -> Iterator[Entry]:
    heads = config.heads(width)
    yield Entry(f"{foreign}.norm", f"{ours}.norm")
    yield Entry(f"{foreign}.qkv", f"{ours}.attention.qkv", rows_by_part(3, heads, order), kernel=1)
    yield Entry(f"{foreign}.proj_out", f"{ours}.attention.proj", kernel=1)
    if config.context_dim is not None:
        yield Entry(f"{foreign}.encoder_kv", f"{ours}.attention.context", rows_by_part(2, heads, order), kernel=1)


def _resampler(config: EncoderConfig, foreign: str, ours: str, conv: str) -> Iterator[Entry]:
    if config.resample == "block":
        yield from _block(foreign, ours)
    else:
        yield Entry(f"{foreign}.{conv}", f"{ours}.conv")


def flat_ports(config: PortsConfig) -> Iterator[Entry]:
    """Labels and captions, as a flat U-Net checkpoint keeps them beside the network."""
    if config.classes is not None:
        yield Entry("label_emb", "ports.classes.table")
    if config.text is not None:
        yield from flat_text(config.text)
        yield Entry("transformer_proj", "ports.text.vector")


def flat_text(config: TextConfig, ours: str = "ports.text.encoder.") -> Iterator[Entry]:
    """Every tensor of the text transformer that GLIDE keeps beside its U-Net; its rows always go head by head."""
    yield Entry("positional_embedding", f"{ours}positions", bare=True)
    yield Entry("padding_embedding", f"{ours}padding", bare=True)
    yield Entry("token_embedding", f"{ours}tokens")
    yield from flat_blocks(config.layers, config.heads, ours)
    yield Entry("final_ln", f"{ours}norm")


def flat_blocks(num_layers: int, num_heads: int, ours: str = "") -> Iterator[Entry]:
    """Every module of the transformer in GLIDE's text encoder and in Karlo's prior."""
    for i in range(num_layers):
        theirs, mine = f"transformer.resblocks.{i}", f"{ours}transformer.blocks.{i}"
        yield Entry(f"{theirs}.ln_1", f"{mine}.norm1")
        yield Entry(f"{theirs}.attn.c_qkv", f"{mine}.attention.qkv", rows_by_part(3, num_heads))
        yield Entry(f"{theirs}.attn.c_proj", f"{mine}.attention.proj")
        yield Entry(f"{theirs}.ln_2", f"{mine}.norm2")
        yield Entry(f"{theirs}.mlp.c_fc", f"{mine}.mlp.0")
        yield Entry(f"{theirs}.mlp.c_proj", f"{mine}.mlp.2")
