"""Keys and shapes of published checkpoints (`tests/golden/manifests*.json`), as tensors without memory."""

import json
from functools import cache
from typing import Any

import torch
from golden_tools import GOLDEN
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
UNCLIP = "manifests_unclip.json"


@cache
def manifests(file: str = "manifests.json") -> dict[str, Any]:
    """Every entry by its name, of OpenAI's checkpoints or, in `UNCLIP`, of Karlo and its relatives."""
    return json.loads((GOLDEN / file).read_text())["checkpoints"]


def shapes(name: str, file: str = "manifests.json") -> Shapes:
    """Keys and shapes of one checkpoint."""
    entry = manifests(file)[name]
    keys = manifests(file)[entry["same_keys_as"]]["keys"] if "same_keys_as" in entry else entry["keys"]
    return {key: tuple(shape) for key, shape in [*keys, *entry.get("shape_differences", [])]}


def state(keys: Shapes) -> dict[str, Tensor]:
    """A state dict of these shapes that holds nothing."""
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
