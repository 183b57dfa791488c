"""Finds the bundled `weights/` and `configs/`: inside the package in a wheel, beside it in a checkout."""

import os
from pathlib import Path

OFFLINE = ("T2I_OFFLINE", "HF_HUB_OFFLINE")
"""Environment variables that forbid downloads."""
_HERE = Path(__file__).resolve().parent.parent


def asset(*parts: str) -> Path:
    """Path of a bundled file or folder, such as `asset("weights", "shapes")`; it need not exist."""
    inside = _HERE.joinpath(*parts)
    return inside if (_HERE / parts[0]).is_dir() else _HERE.parent.joinpath(*parts)


def offline() -> bool:
    """Whether the environment forbids downloads."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)
