"""Finds the bundled `weights/` and `configs/`: inside the package in a wheel, beside it in a checkout."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def asset(*parts: str) -> Path:
    """Path of a bundled file or folder, such as `asset("weights", "shapes")`; it need not exist."""
    inside = _HERE.joinpath(*parts)
    return inside if (_HERE / parts[0]).is_dir() else _HERE.parent.joinpath(*parts)
