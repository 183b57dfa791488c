"""Keys and shapes of published checkpoints (`tests/golden/manifests.json`), as tensors without memory."""

import json
from functools import cache
from typing import Any

import torch
from golden_tools import GOLDEN
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@cache
def manifests() -> dict[str, Any]:
    """Every entry by its name."""
    return json.loads((GOLDEN / "manifests.json").read_text())["checkpoints"]


def shapes(name: str) -> Shapes:
    """Keys and shapes of one checkpoint."""
    entry = manifests()[name]
    keys = manifests()[entry["same_keys_as"]]["keys"] if "same_keys_as" in entry else entry["keys"]
    return {key: tuple(shape) for key, shape in [*keys, *entry.get("shape_differences", [])]}


def state(keys: Shapes) -> dict[str, Tensor]:
    """A state dict of these shapes that holds nothing."""
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
