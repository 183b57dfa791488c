"""Rebuilds the synthetic weights and inputs of `tests/golden/*.json` and compares outputs with the values stored there.

The rules are those of `how_to_use` in each file: weights follow from their key names, inputs from seeds, and an output
is known by its statistics, some of its values and one random projection of all of them.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


@cache
def _read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def load_case(file: str, case: str) -> dict[str, Any]:
    """The case with id `case` of `tests/golden/<file>`."""
    found = [c for c in _read(file)["cases"] if c["id"] == case]
    assert len(found) == 1, f"{file} holds {len(found)} cases named {case!r}"
    return found[0]


def normal(seed: int, shape: Sequence[int]) -> Tensor:
    """Rule `inp` without its ops: NumPy's legacy normal stream, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def fill(key: str, shape: Sequence[int]) -> Tensor:
    """Weight of the state-dict entry `key`, a function of its name and shape alone."""
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif key.endswith(("weight", ".g")):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def fill_state_dict(
    shapes: Mapping[str, Sequence[int]] | Sequence[Sequence[Any]],
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Tensor]:
    """A whole state dict. `shapes` maps keys to shapes, or is the `keys` list of a case; `overrides` maps a key, or
    `*` and the end of one, to {"mul": …, "add": …}, applied in float32 after filling."""
    pairs = dict(shapes.items() if isinstance(shapes, Mapping) else shapes)
    state = {key: fill(key, shape) for key, shape in pairs.items()}
    for pattern, change in (overrides or {}).items():
        keys = [k for k in state if k.endswith(pattern[1:])] if pattern.startswith("*") else [pattern]
        assert keys, f"override {pattern!r} matches no key"
        for key in keys:
            state[key] = state[key] * change.get("mul", 1.0) + change.get("add", 0.0)
    return state


_OPS: dict[str, Callable[..., Tensor]] = {
    "mul": lambda x, a: x * a,
    "add": lambda x, a: x + a,
    "abs": lambda x: x.abs(),
    "clamp": lambda x, low, high: x.clamp(low, high),
    "tanh": lambda x: x.tanh(),
    "l2norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "zero_from": lambda x, lengths: torch.stack(
        [row * (torch.arange(len(row)) < n).float()[:, None] for row, n in zip(x, lengths, strict=True)]
    ),
}


def make_input(rule: Mapping[str, Any]) -> Any:
    """One entry of a case's `inputs`: a tensor, or a `Stream` for the rule of that name."""
    match rule["rule"]:
        case "inp":
            value = normal(rule["seed"], rule["shape"])
            for name, *args in rule.get("ops", []):
                value = _OPS[name](value, *args)
            return value
        case "randint":
            levels = np.random.RandomState(rule["seed"]).randint(0, 256, tuple(rule["shape"]))
            return torch.from_numpy((levels / 127.5 - 1).astype(np.float32))
        case "literal":
            return torch.tensor(rule["value"], dtype=getattr(torch, rule["dtype"]) if "dtype" in rule else None)
        case "prefix_mask":
            return torch.arange(rule["ctx"])[None] < torch.tensor(rule["lengths"])[:, None]
        case "stream":
            return Stream(rule["seed"])
    raise AssertionError(f"rule {rule['rule']!r} needs code of its own: {rule.get('doc')}")


class Stream:
    """One NumPy normal stream for a whole batch, so that recorded chains can be replayed; a `NoiseSource` whose batch
    size is set once by `of(batch)`."""

    def __init__(self, seed: int, batch: int = 1) -> None:
        self.random, self.batch, self.num_draws = np.random.RandomState(seed), batch, 0

    def of(self, batch: int) -> "Stream":
        self.batch = batch
        return self

    def normal(self, *shape: int) -> Tensor:
        self.num_draws += 1
        return torch.from_numpy(self.random.standard_normal((self.batch, *shape)).astype(np.float32))


def check(spec: Mapping[str, Any], value: Tensor, name: str = "output") -> None:
    """Compare a tensor with one entry of a case's `outputs`: shape, values, mean, std and projection."""
    assert list(value.shape) == list(spec["shape"]), f"{name}: shape {list(value.shape)}, expected {spec['shape']}"
    flat = value.detach().double().cpu().flatten()
    z = torch.from_numpy(np.random.RandomState(12345).standard_normal(len(flat)))
    values = zip(spec["idx"], flat[spec["idx"]].tolist(), spec["val"], strict=True)
    rows = [(f"[{i}]", got, want, 1.0) for i, got, want in values]
    rows += [("mean", flat.mean().item(), spec["mean"], 1.0)]
    rows += [("std", flat.std().item(), spec["std"], 1.0)] if len(flat) > 1 else []
    rows += [("proj", ((flat * z).sum() / len(flat) ** 0.5).item(), spec["proj"], 4.0)]
    for what, got, want, factor in rows:
        limit = factor * (spec["atol"] + spec.get("rtol", 0.0) * abs(want))
        assert abs(got - want) <= limit, f"{name} {what}: {got:.8g}, expected {want:.8g}, tolerance {limit:.2g}"
