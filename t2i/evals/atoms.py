"""Prompts taken apart: every object, number, colour and relation that a sentence asks for is one atom, true or not of a
picture, as in GenEval 2 (Meta 2026: Soft-TIFA's arithmetic and geometric mean).

N pictures
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t2i.evals.report import Score


class Atom(NamedTuple):
    """One thing that a prompt asks for, and how surely a picture shows it, in [0, 1]."""

    text: str
    value: float


def arithmetic(atoms: Sequence[Atom]) -> float:
    """The mean: how much of the prompt is there."""
    return sum(atom.value for atom in atoms) / len(atoms)


def geometric(atoms: Sequence[Atom]) -> float:
    """The geometric mean: whether all of the prompt is there; 0 where one atom is surely not."""
    if any(atom.value <= 0 for atom in atoms):
        return 0.0
    return math.exp(sum(math.log(atom.value) for atom in atoms) / len(atoms))


def by_atoms(pictures: Sequence[Sequence[Atom]], numbers: Sequence[int | None] = ()) -> dict[str, Any]:
    """Both means over N pictures, of all and by the number of their atoms, JSON-able; pictures without atoms are left
    out. `numbers` are those that a file gives its prompts, one a picture, where it does."""
    told = numbers or [None] * len(pictures)
    some = [(atoms, num or len(atoms)) for atoms, num in zip(pictures, told, strict=True) if atoms]
    groups: dict[str, list[Sequence[Atom]]] = {"all": [atoms for atoms, _ in some]} if some else {}
    for num in sorted({num for _, num in some}):
        groups[str(num)] = [atoms for atoms, its in some if its == num]
    return {
        name: {
            "pictures": len(group),
            "arithmetic": list(Score.of([100 * arithmetic(atoms) for atoms in group])),
            "geometric": list(Score.of([100 * geometric(atoms) for atoms in group])),
        }
        for name, group in groups.items()
    }


def table(found: Mapping[str, Any]) -> str:
    """Lines to print."""
    lines = [f"{'atoms':<8}{'pictures':>9}{'arithmetic, %':>18}{'geometric, %':>18}"]
    for name, row in found.items():
        means = [f"{Score(*row[kind])!s:>18}" for kind in ("arithmetic", "geometric")]
        lines.append(f"{name:<8}{row['pictures']:>9}{''.join(means)}")
    return "\n".join(lines)
