"""A pipeline as a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from t2i.core.devices import stored_as
from t2i.core.paths import path_of
from t2i.io.files import write
from t2i.io.weights import fingerprint
from t2i.stages.registry import save_stage, stage_of
from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline


def save_pretrained(pipe: "Pipeline", folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
    """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`.

    `dtype` is what weights are stored as: float32, bfloat16, float16 or int8; None keeps them as they are.
    """
    dtype = None if dtype is None else stored_as(dtype)
    folder = path_of(folder, "the folder")
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
