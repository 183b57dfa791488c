"""What this installation and its models are, in words."""

import platform
from pathlib import Path

import torch

from t2i import __version__
from t2i.hub import index, resolve
from t2i.pipeline import Pipeline
from t2i.precision import fast_bfloat16


def describe(model: str | None = None) -> str:
    """Versions, devices and known models; or the stages, parameters and settings of one model."""
    return _installation() if model is None else _model(model)


def _installation() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    lines = [
        f"t2i {__version__} · Python {platform.python_version()} · torch {torch.__version__}",
        f"device {device} ({name}), {'fast' if fast_bfloat16(device) else 'slow'} bfloat16",
        "models:",
    ]
    return "\n".join(lines + [f"  {key:<12} {entry['description']}" for key, entry in index().items()])


def _model(model: str) -> str:
    pipe = Pipeline.from_pretrained(model, device="cpu")
    folder: Path = resolve(model)
    lines = [f"{model}: {type(pipe).__name__} in {folder}"]
    for name, part in pipe.parts.items():
        count = sum(p.numel() for p in part.parameters())
        size = sum(f.stat().st_size for f in (folder / name).glob("*.safetensors"))
        chosen = [f"{what} {values[name]}" for what, values in pipe.settings.items() if values.get(name) is not None]
        lines.append(f"  {name:<8} {count / 1e6:7.2f} M parameters  {size / 2**20:6.1f} MiB  {', '.join(chosen)}")
    return "\n".join(lines)
