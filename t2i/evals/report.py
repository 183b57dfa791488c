"""What a measurement gives back."""

import json
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
