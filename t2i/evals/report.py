"""What a measurement gives back."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t2i.io import files


class Report(NamedTuple):
    """A measurement: `text` is a table to print, `facts` all of it as JSON-able values."""

    text: str
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the facts as JSON, into a new folder if need be."""
        files.writable(path.parent)
        files.write(path, json.dumps(self.facts, indent=1).encode() + b"\n")


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, into a new folder if need be."""
    files.writable(path.parent)
    files.write(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


class Score(NamedTuple):
    """A mean over `num` pictures or things, ± half of its 95 % interval."""

    mean: float
    half: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Nothing measured is a mean of nan."""
        if not values:
            return cls(float("nan"), float("nan"), 0)
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values), 1.96 * spread / len(values) ** 0.5, len(values))

    def __str__(self) -> str:
        sure = f" ± {self.half:.2g}" if self.num > 1 else ""
        return f"{self.mean:.4g}{sure}" if self.num else "none"


class Share(NamedTuple):
    """`correct` of `total`, and the 95 % interval of the share behind them."""

    correct: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.correct / self.total if self.total else 0.0


def wilson(correct: int, total: int) -> Share:
    """A share with its 95 % interval (Wilson 1927), which is honest for few pictures and for shares near 0 and 1."""
    if total == 0:
        return Share(0, 0, 0.0, 1.0)
    z2, p = 1.959964**2, correct / total
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (p * (1 - p) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return Share(correct, total, max(0.0, middle - half), min(1.0, middle + half))
