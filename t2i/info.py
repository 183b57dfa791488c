"""What this installation and its models are, in words."""

import platform
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2i import __version__
from t2i.hub import cached, find, index, megabytes, parts
from t2i.pipeline import Pipeline
from t2i.precision import fast_bfloat16
from t2i.registry import find_stage, load_stage


def describe(model: str | None = None) -> str:
    """Versions, devices and known models; or the stages, parameters and settings of one model, or one stage."""
    if model is None:
        return _installation()
    if (alone := find_stage(model)).is_dir() and (alone / "config.json").is_file():
        return _stage(alone)
    folder = find(model)
    return _published(model) if folder is None else _model(model, folder)


def _installation() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return "\n".join(
        [
            f"t2i {__version__} · Python {platform.python_version()} · torch {torch.__version__}",
            f"device {device} ({name}), {'fast' if fast_bfloat16(device) else 'slow'} bfloat16",
            "bundled models:",
            *(f"  {key:<12} {e['description']} ({e['licence']})" for key, e in index().items() if "parts" not in e),
            "published models, downloaded and converted on first use (* on this machine):",
            *_groups(),
        ]
    )


def _groups() -> list[str]:
    """Published models by owner and licence, with their sizes."""
    groups: dict[str, list[str]] = {}
    for key, entry in index().items():
        if "parts" in entry:
            owner, _, name = key.rpartition("/")
            mark = "*" if (cached(key) / "model_index.json").is_file() else ""
            size = _size(megabytes(key)).replace(" ", "\N{NO-BREAK SPACE}")
            groups.setdefault(f"  {owner}/ ({entry['licence']})", []).append(f"{name}{mark}\N{NO-BREAK SPACE}{size}")
    wrap = partial(textwrap.fill, width=110, subsequent_indent=" " * 6, break_on_hyphens=False)
    return [wrap(f"{title} {', '.join(names)}").replace("\N{NO-BREAK SPACE}", " ") for title, names in groups.items()]


def _published(model: str) -> str:
    entry = index()[model]
    lines = [f"{model}: {entry['pipeline']}, not downloaded yet; {entry['description']}"]
    for place, rows in parts(model).items():
        count, size = sum(row["parameters"] for row in rows), _size(sum(row["megabytes"] for row in rows))
        lines.append(f"  {place:<17} {count / 1e6:7.2f} M parameters  {size:>7}  {_chosen(entry['settings'], place)}")
    return "\n".join(
        [*lines, f"licence {entry['licence']}; first use downloads {_size(megabytes(model))} to {cached(model)}"]
    )


def _model(model: str, folder: Path) -> str:
    pipe = Pipeline.from_pretrained(model, device="cpu")
    lines = [f"{model}: {type(pipe).__name__} in {folder}"]
    for name, part in pipe.parts.items():
        count = sum(p.numel() for p in part.parameters())
        size = sum(f.stat().st_size for f in (folder / name).glob("*.safetensors"))
        lines.append(
            f"  {name:<8} {count / 1e6:7.2f} M parameters  {size / 2**20:6.1f} MiB  {_chosen(pipe.settings, name)}"
        )
    return "\n".join(lines)


def _stage(folder: Path) -> str:
    """A stage on its own."""
    part = load_stage(folder)
    count, size = sum(p.numel() for p in part.parameters()), sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return f"{folder}: {type(part).__name__}, {count / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB"


def _chosen(settings: Mapping[str, Mapping[str, Any]], place: str) -> str:
    return ", ".join(f"{what} {values[place]}" for what, values in settings.items() if values.get(place) is not None)


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
