"""Which of the weights in a file are meant, and by what names.

Trainers keep weights and their averages side by side, and wrappers put a word before every name. Averages come first,
such words are taken off, and what was done is told.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from t2i.core.errors import DataError, UsageError

Which = Literal["ema", "raw"]
"""Averaged weights, or those that were trained."""
_AVERAGED = re.compile(r"(?:^|[._])(?:ema\d*|avg|averaged?|swa|shadow)(?:[._]|$)")  # in the name of a group
_AVERAGED_KEY = re.compile(r"(?:(\d+)\.)?(ema_model|model_ema|averaged_model|ema)\.(.+)")
_TRAINED_KEY = re.compile(r"(?:(\d+)\.)?(online_model)\.(.+)")  # beside those, in ema-pytorch
_COUNTERS = ("initted", "step", "decay", "num_updates", "n_averaged", "collected_params", "optimization_step")
_STATES = ("opt", "sched", "lr_", "scaler")  # how groups begin that are no weights
_DEPTH = 4


class Group(NamedTuple):
    """Weights by name, and where in the file they stand: "" for the file itself."""

    name: str
    averaged: bool
    weights: dict[str, Tensor]


def choose(
    data: Any, which: Which | None, fit: Callable[[Collection[str]], Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that are meant of what a file holds, and what was chosen and changed, in sentences.

    Args:
        which: None for averaged ones where there are any.
        fit: of names → how well they are known; the larger, the better. Decides between groups, and how many words that
            stand before all names are taken off.

    Raises:
        DataError: there are no tensors by name, or averages without names.
        UsageError: there are no weights of the kind that is asked for.
    """
    found, nameless = _groups(data)
    kinds = [which == "ema"] if which else [True, False]
    of_kind = next((some for kind in kinds if (some := [g for g in found if g.averaged is kind])), [])
    if not found:
        raise DataError("expected a dictionary of tensors by name")
    if not of_kind:
        raise UsageError(f"holds no {'averaged' if which == 'ema' else 'raw'} weights, but {_names(found)}")
    if nameless and which != "raw" and not of_kind[0].averaged:
        raise DataError(
            f"the averages in {nameless!r} have no names, and are not as many as the weights; take the raw ones"
        )
    whole = [(group, *_unwrapped(group.weights, fit)) for group in of_kind]
    group, weights, prefix = max(whole, key=lambda found: fit(found[1]))  # the first of equals
    told = [f"every name begins with {prefix!r}, which is taken off"] if prefix else []
    others = [other for other in found if other is not group]
    if others or group.averaged:
        told.insert(0, f"taken are the {_kind(group)}" + (f", not the {_names(others)}" if others else ""))
    if group.averaged:
        for other in (g for g in others if not g.averaged):
            rest = _unwrapped(other.weights, fit)[0]
            lacking = {key: value for key, value in rest.items() if key not in weights}
            if lacking and weights.keys() <= rest.keys():
                told.append(f"{len(lacking)} tensors have no average, such as {min(lacking)!r}: of the {_kind(other)}")
                return weights | lacking, told
    return weights, told


def _groups(data: Any) -> tuple[list[Group], str]:
    """All weights in a file, and the name of averages that cannot be told apart."""
    found = [group for name, weights in _states(data) for group in _split(name, weights)]
    nameless = ""
    for name, values in _lists(data):
        named = (_named(values, group.weights) for group in found if not group.averaged)
        if (weights := next(filter(None, named), None)) is None:
            nameless = name
        else:
            found.append(Group(name, True, weights))
    return found, nameless


def _states(data: Any, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries of tensors alone, beside counters, with their place in the file."""
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data) or depth == 0:
        return
    weights = {key: value for key, value in data.items() if not _counts(key, value)}
    if weights and all(isinstance(value, Tensor) for value in weights.values()):
        yield name, weights
        return
    for key, value in data.items():
        if not key.startswith(_STATES):
            yield from _states(value, f"{name}.{key}" if name else key, depth - 1)


def _lists(data: Any, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Averages that are lists, in the order of a network's parameters."""
    if isinstance(data, Mapping) and depth:
        for key, value in data.items():
            yield from _lists(value, f"{name}.{key}" if name else str(key), depth - 1)
    tensors = isinstance(data, list | tuple) and data and all(isinstance(value, Tensor) for value in data)
    if tensors and _AVERAGED.search(name) and not name.startswith(_STATES):
        yield name, data


def _counts(key: str, value: Any) -> bool:
    """Whether an entry beside weights only says how they were averaged."""
    return key.rpartition(".")[2] in _COUNTERS and (not isinstance(value, Tensor) or value.ndim == 0)


def _named(values: Sequence[Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A list of averages by the names of the weights, if these are as many and of the same shapes."""
    floating = {key: value for key, value in weights.items() if value.is_floating_point()}
    alike = [value.shape for value in floating.values()] == [value.shape for value in values]
    return dict(zip(floating, values, strict=True)) if alike else None


def _split(name: str, weights: dict[str, Tensor]) -> Iterator[Group]:
    """A group, or the averages in it and the rest. ema-pytorch numbers the U-Nets of DALLE2-pytorch; latent diffusion
    leaves the dots out of the names of averages."""
    averaged = {key: match for key in weights if (match := _AVERAGED_KEY.fullmatch(key))}
    if not averaged:
        yield Group(name, _AVERAGED.search(name) is not None, weights)
        return
    rest = {key: value for key, value in weights.items() if key not in averaged}
    undotted = {key.removeprefix("model.").replace(".", ""): key for key in rest}
    place = f"{name}." if name else ""
    names = {key: undotted.get(match[3]) or _numbered(match) for key, match in averaged.items()}
    yield Group(place + next(iter(averaged.values()))[2], True, {names[key]: weights[key] for key in averaged})
    if rest:
        trained = {_numbered(m) if (m := _TRAINED_KEY.fullmatch(key)) else key: value for key, value in rest.items()}
        yield Group(name, False, trained)


def _numbered(match: re.Match[str]) -> str:
    """The name that a network's weights have without the average's words."""
    return match[3] if match[1] is None else f"unets.{match[1]}.{match[3]}"


def _unwrapped(weights: dict[str, Tensor], fit: Callable[[Collection[str]], Any]) -> tuple[dict[str, Tensor], str]:
    """Weights without the words that stand before all names, as many of them as fit best, and these words."""
    best, prefix, words = weights, "", ""
    while len(first := {key.partition(".")[0] for key in weights}) == 1 and all("." in key for key in weights):
        words += f"{first.pop()}."
        weights = {key.partition(".")[2]: value for key, value in weights.items()}
        if fit(weights) > fit(best):
            best, prefix = weights, words
    return best, prefix


def _kind(group: Group) -> str:
    kind = "averaged" if group.averaged else "raw"
    return f"{kind} weights {group.name!r}" if group.name else f"{kind} weights"


def _names(groups: Sequence[Group]) -> str:
    return ", ".join(map(_kind, groups[:4])) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")
