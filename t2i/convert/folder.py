"""Which files of a folder of diffusers or transformers are its weights: whole or in shards, in one of several
precisions."""

import logging
import re
from pathlib import Path

from t2i.core.errors import DataError, UsageError
from t2i.io.weights import shards_of
from t2i.stages.registry import STAGES, stage_in

log = logging.getLogger(__name__)

FOLDER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Weights in a folder of diffusers or transformers, the first that is there."""
_NAME = re.compile(  # such as model.fp16.safetensors, model.safetensors.index.fp16.json
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<of>\w+))?\.json)?"
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or all shards of an index. Of several versions full precision and
    safetensors come first; what is taken is logged.

    Raises:
        DataError: there are none, or a shard is missing.
        UsageError: the folder is a stage already.
    """
    found = sorted((order, path.name) for path in folder.iterdir() if (order := _order(path.name)) is not None)
    if not found:
        others = [
            p.name for p in sorted(folder.iterdir()) if p.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
        ]
        hint = f"; give the file itself, such as {folder / others[0]}" if others else ""
        raise DataError(f"{folder}: holds none of {', '.join(FOLDER_FILES)}{hint}")
    if (name := stage_in(folder)) in STAGES:
        raise UsageError(f"{folder} is a {name} of t2i already, and needs no conversion; dtype alone can be changed")
    taken, *others = (name for _, name in found)
    if others:
        log.info("%s: taken are the weights %s, not %s", folder, taken, ", ".join(others))
    if not taken.endswith(".json"):
        return [folder / taken]
    return [folder / file for file in sorted(set(shards_of(folder / taken).values()))]


def _order(name: str) -> tuple[bool, bool, int, bool] | None:
    """Where a file stands among others that hold weights, the best first; None if it holds none."""
    match = _NAME.fullmatch(name)
    if match is None or (plain := f"{match['stem']}.{match['kind']}") not in FOLDER_FILES:
        return None
    variant = match["variant"] or match["of"] or ""
    return variant != "", "non_ema" in variant, FOLDER_FILES.index(plain), match["index"] is not None
