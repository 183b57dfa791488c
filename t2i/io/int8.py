"""Weights in a quarter of their size: whole numbers from -127 to 127, and a scale for each output channel.

    weight[c, …] ≈ values[c, …] · scale[c],    scale[c] = max |weight[c, …]| / 127

A scale is a bfloat16. It has the range of float32, so a channel of tiny weights keeps its precision (a float16 below
6e-5 would lose it), and its 8 digits are just enough: rounding moves a scale by 1/256 at most, so the largest weight,
127 scales, by less than half a scale. Seven digits times eight fit a float32: weights are read back exactly as they
were rounded, the largest of a channel is 127 scales again, and so a second save writes the same bytes.

What a model keeps of each tensor is said by `compact`; which of a file's tensors are values and which are their scales
is said by the file's header (`pack`, `unpack`), and never guessed from names.

C output channels, the first axis of a weight
"""

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from t2i.core.errors import quoted

TOP = 127
SMALL = 20_000
"""Weights of a kernel of several pixels. A smaller one saves little, and the first, last and finest convolutions are
small: rounded, they moved the mean colour of ADM's pictures by 6 of 255; in float16 they leave it within 1.2."""
SMALL_MATRIX = 4096
"""Weights of a matrix, or of a kernel of one pixel: narrow transformers have nothing but such."""
HEADER = "t2i.int8"
"""Key of a file's metadata: a JSON object, name of the values → name of their scale."""
_TINY = torch.finfo(torch.float32).tiny  # the smallest scale, of channels that are zero
_HALF_TINY = torch.finfo(torch.float16).tiny


class Int8(NamedTuple):
    """A weight as it is stored."""

    values: Tensor  # (C, …) int8
    scale: Tensor  # (C,)    bfloat16, positive


Stored = Tensor | Int8


def quantise(weight: Tensor) -> Int8:
    """Round every weight to the nearest multiple of its channel's scale; finite weights alone.

    No weight moves by more than half the scale of its channel.
    """
    flat = weight.detach().double().flatten(1)  # (C, N), so that the nearest is the nearest
    scale = (flat.abs().amax(1) / TOP).clamp(min=_TINY).bfloat16()  # (C,)
    values = (flat / scale.double()[:, None]).round().clamp(-TOP, TOP)
    return Int8(values.to(torch.int8).view(weight.shape), scale)


def dequantise(stored: Int8) -> Tensor:
    """The weights, in float32; exact."""
    scale = stored.scale.float().view(-1, *[1] * (stored.values.ndim - 1))
    return stored.values.float() * scale


def loaded(state: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Tensors to calculate with, of tensors as they are stored."""
    return {key: dequantise(value) if isinstance(value, Int8) else value for key, value in state.items()}


def compact(state: Mapping[str, Tensor], buffers: Collection[str] = ()) -> dict[str, Stored]:
    """What is stored of a model in int8.

    - Matrices, tables and kernels (see `pays`) are quantised.
    - Other floating tensors become float16, which moves no weight by more than 1/2048 of the largest.
    - Those that float16 cannot hold to that (beyond 65504, nothing above 6e-5, or not finite) become float32.
    - `buffers`, which hold what was measured, and whole numbers stay as they are.
    """
    return {k: v if k in buffers or not v.is_floating_point() else _compacted(v) for k, v in state.items()}


def pays(shape: torch.Size) -> bool:
    """Whether a tensor has several channels, and is large enough for scales to be worth their bytes."""
    small = SMALL if shape[2:].numel() > 1 else SMALL_MATRIX
    return len(shape) >= 2 and shape[0] > 1 and shape.numel() >= max(small, 4 * shape[0])


def num_bytes(state: Mapping[str, Tensor], buffers: Collection[str] = ()) -> int:
    """Of `compact`ed weights, from their shapes alone."""
    total = 0
    for key, value in state.items():
        if key in buffers or not value.is_floating_point():
            total += value.numel() * value.element_size()
        else:
            total += value.numel() + 2 * value.shape[0] if pays(value.shape) else 2 * value.numel()
    return total


def pack(state: Mapping[str, Stored]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and what its header says of them; `unpack` reads both. A scale is named after its weight,
    with as many dots as no other tensor has."""
    dots = "."
    while any(f"{key}{dots}scale" in state for key, value in state.items() if isinstance(value, Int8)):
        dots += "."
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for key, value in state.items():
        if isinstance(value, Int8):
            names[key] = f"{key}{dots}scale"
            tensors[key], tensors[names[key]] = value
        else:
            tensors[key] = value
    return tensors, {HEADER: json.dumps(names, ensure_ascii=False, separators=(",", ":"))} if names else {}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Stored]:
    """Weights of a file, by what its header says of them; ValueError where that is not so. Of tensors on the device
    "meta" all but the numbers is checked."""
    names = _names(metadata.get(HEADER, "{}"))
    state: dict[str, Stored] = {key: value for key, value in tensors.items() if key not in names.values()}
    for key, name in names.items():
        state[key] = _checked(key, Int8(_tensor(tensors, key, key), _tensor(tensors, name, key)))
    return state


def _compacted(tensor: Tensor) -> Stored:
    whole = tensor.detach().float()
    if not whole.isfinite().all():
        return whole
    if pays(whole.shape):
        stored = quantise(whole)
        if dequantise(stored).isfinite().all():  # near float32's end a rounded scale can leave its range
            return stored
    half, largest = whole.half(), whole.abs().max() if whole.numel() else whole.new_zeros(())
    return half if half.isfinite().all() and (largest == 0 or largest >= _HALF_TINY) else whole


def _names(text: str) -> dict[str, str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"its header names no int8 weights and scales: {quoted(text)}")
    return names


def _tensor(tensors: Mapping[str, Tensor], name: str, key: str) -> Tensor:
    if name not in tensors:
        what = "which is not there" if name == key else f"whose scale {name!r} is not there"
        raise ValueError(f"its header names the int8 weight {key!r}, {what}")
    return tensors[name]


def _checked(key: str, stored: Int8) -> Int8:
    values, scale = stored
    if (values.dtype, scale.dtype) != (torch.int8, torch.bfloat16):
        found = f"{values.dtype} and a scale of {scale.dtype}".replace("torch.", "")
        raise ValueError(f"expected int8 and a scale of bfloat16 for {key!r}, got {found}")
    if values.ndim == 0 or scale.shape != values.shape[:1]:
        found = f"{list(scale.shape)} scales for {list(values.shape)} weights"
        raise ValueError(f"expected one scale for each channel of {key!r}, got {found}")
    if not scale.is_meta and not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"the scales of {key!r} must be positive and finite, got {scale.min():g} to {scale.max():g}")
    return stored
