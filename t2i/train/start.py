"""Weights of an earlier stage for a model that may be another: what fits is taken, the rest is named."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_NAMED = 8  # modules that a message lists


@dataclass(frozen=True)
class Start:
    """What a model took from earlier weights.

    Attributes:
        taken: names of tensors that fitted by name and shape.
        anew: modules that keep the values they were made with, with why.
        unused: modules of the earlier weights that the model has no place for.
    """

    taken: frozenset[str]
    num_tensors: int
    anew: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} of {self.num_tensors} tensors taken"]
        parts += [
            f"{what}: {_listed(names)}" for what, names in (("anew", self.anew), ("not used", self.unused)) if names
        ]
        return "; ".join(parts)


def take_what_fits(model: nn.Module, given: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Start:
    """Put into a model those of the `given` weights that fit by name and shape.

    Args:
        given: weights in the form of this model, see `Stage.start`.
        before: the earlier stage's own, of which the message tells.
    """
    wanted = model.state_dict()
    fits = {
        name: value
        for name, value in given.items()
        if name in wanted and value.shape == wanted[name].shape and value.data_ptr() != wanted[name].data_ptr()
    }  # a stage that has nothing to start from gives the model's own values back
    model.load_state_dict(fits, strict=False)
    anew = modules(wanted.keys() - fits.keys(), wanted)
    why = {name: _shapes(name, before, wanted) for name in anew}
    taken = {value.data_ptr() for value in fits.values()}  # also under another name
    unused = {name for name, value in before.items() if name not in wanted and value.data_ptr() not in taken}
    return Start(
        frozenset(fits),
        len(wanted),
        tuple(f"{name} ({why[name]})" if why[name] else name for name in anew),
        tuple(modules(unused, before)),
    )


def modules(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """The outermost modules of which all tensors are in `names`, by the names `among` which these are."""
    names = set(names)
    rest = [name for name in among if name not in names]
    kept = {".".join(name.split(".")[: i + 1]) for name in rest for i in range(name.count(".") + 1)}
    found = []
    for name in sorted(names):
        parts = name.split(".")
        starts = (".".join(parts[: i + 1]) for i in range(len(parts)))
        found.append(next((start for start in starts if start not in kept), name))
    return list(dict.fromkeys(found))


def _shapes(name: str, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`149×128 → 49408×128` where a tensor, or the only one of a module, was there in another shape."""
    inside = [key for key in wanted if key == name or key.startswith(f"{name}.")]
    if len(inside) != 1 or inside[0] not in before:
        return ""
    return " → ".join("×".join(map(str, x[inside[0]].shape)) for x in (before, wanted))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
