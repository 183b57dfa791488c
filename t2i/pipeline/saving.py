"""A pipeline as a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from t2i.io.files import write
from t2i.io.weights import fingerprint
from t2i.stages.registry import save_stage, stage_of
from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline


def save_pretrained(pipe: "Pipeline", folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`.

    `dtype` is the type of the stored weights, None keeps them as they are.
    """
    folder = Path(folder)
    index: dict[str, Any] = {"_class_name": pipe.kind, "_t2i_version": __version__}
    for name, part in pipe.parts.items():
        stage = stage_of(part).name
        save_stage(folder / name, stage, part, dtype=dtype)
        index[name] = ["t2i", stage]
    index["settings"] = pipe.settings
    write(folder / "model_index.json", json.dumps(index, indent=2).encode() + b"\n")
    if dtype is None:
        weights = fingerprint({name: folder / name for name in pipe.parts})
        pipe.source, pipe.weights, pipe.preset = str(folder.resolve()), weights, ""
