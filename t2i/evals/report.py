"""What a measurement gives back."""

import json
import statistics
from collections.abc import Sequence
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
