"""A pipeline as a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from t2i.core.devices import stored_as
from t2i.core.paths import path_of
from t2i.io.files import output_folder, room_for, write
from t2i.io.lock import sole_writer
from t2i.io.staged import staged
from t2i.io.weights import fingerprint
from t2i.stages.registry import save_stage, stage_of
from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline


def save_pretrained(pipe: "Pipeline", folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
    """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`.

    `dtype` is what weights are stored as: float32, bfloat16, float16 or int8; None keeps them as they are. A model that
    is there already is replaced as a whole, by one that is written beside it first; a folder in which that was cut off
    has no `model_index.json` and is refused.

    Raises UsageError where another process writes there, DataError for a full disk; an earlier model is then whole.
    """
    dtype = None if dtype is None else stored_as(dtype)
    folder = path_of(folder, "the folder")
    index: dict[str, Any] = {"_class_name": pipe.kind, "_t2i_version": __version__}
    index |= {name: ["t2i", stage_of(part).name] for name, part in pipe.parts.items()}
    index["settings"] = pipe.settings
    tensors = [x for part in pipe.parts.values() for x in part.state_dict().values()]
    with output_folder(folder) as folder, sole_writer(folder), staged(folder, "model_index.json") as temporary:
        room_for(folder, sum(x.numel() * min(x.itemsize, (dtype or x.dtype).itemsize) for x in tensors))
        for name, part in pipe.parts.items():
            save_stage(temporary / name, index[name][1], part, dtype=dtype)
        write(temporary / "model_index.json", json.dumps(index, indent=2).encode() + b"\n")
    if dtype is None:
        weights = fingerprint({name: folder / name for name in pipe.parts})
        pipe.source, pipe.weights, pipe.preset = str(folder.resolve()), weights, ""
