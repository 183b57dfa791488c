"""Finds the bundled `weights/` and `configs/`: inside the package in a wheel, beside it in a checkout."""

import difflib
import os
from pathlib import Path

from t2i.core.errors import UsageError

OFFLINE = ("T2I_OFFLINE", "HF_HUB_OFFLINE")
"""Environment variables that forbid downloads."""
_HERE = Path(__file__).resolve().parent.parent


def asset(*parts: str) -> Path:
    """Path of a bundled file or folder, such as `asset("weights", "shapes")`; it need not exist."""
    inside = _HERE.joinpath(*parts)
    return inside if (_HERE / parts[0]).is_dir() else _HERE.parent.joinpath(*parts)


def bundled_configs() -> list[str]:
    """Bundled training configs by their names, such as `configs/shapes/ddpm.yaml`."""
    root = asset("configs")
    return sorted(f"configs/{path.relative_to(root).as_posix()}" for path in root.rglob("*.yaml"))


def find_config(path: str | Path) -> Path:
    """A config file by path, or by its name under the bundled `configs/`; UsageError with near names for neither."""
    path = Path(path)
    bundled = asset("configs", *path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    if path.exists() or bundled.is_file():
        return path if path.exists() else bundled
    choices = [*bundled_configs(), *map(str, path.parent.glob("*.yaml"))]
    names = {name: name for name in choices} | {Path(name).name: name for name in reversed(choices)}
    near = [names[name] for name in difflib.get_close_matches(path.as_posix(), names, n=3, cutoff=0.7)]
    near = near or [names[name] for name in difflib.get_close_matches(path.name, names, n=3, cutoff=0.7)]
    hint = (
        f", did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"
        if near
        else "; t2i configs lists those at hand"
    )
    raise UsageError(f"cannot read config {path}: no such file{hint}")


def offline() -> bool:
    """Whether the environment forbids downloads."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)
