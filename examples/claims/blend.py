"""The table of example 12, six generators by what they were trained on (claims 20 and 21)."""

import json
from typing import Any

from lab import ROOT, Lab, Value

TABLE = ROOT / "docs" / "claims" / "blend" / "table.json"
NAMES = {"clip": "CLIP score", "things": "things drawn right, %"}


def arms(lab: Lab, asked: str) -> dict[str, dict[str, Value]]:
    """What each generator draws when it is asked in captions of a kind; ends where the table is not there."""
    if not TABLE.is_file():
        raise SystemExit(
            f"{TABLE} is missing: examples/12_recaption_and_train.py writes it (its command is in docs/captions.md)"
        )
    facts: dict[str, Any] = json.loads(TABLE.read_text())
    lab.settings |= facts["settings"]
    num = facts["settings"]["num"]
    return {
        arm: {NAMES[what]: Value(*row[asked][what], num) for what in NAMES if what in row[asked]}
        for arm, row in facts["arms"].items()
    }
