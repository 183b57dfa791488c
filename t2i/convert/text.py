"""A text encoder of others as a stage: its name is kept, its weights stay where they are."""

import os
from pathlib import Path

from t2i.core.choices import dtype_name
from t2i.core.errors import UsageError
from t2i.io.files import output_folder
from t2i.io.lock import sole_writer
from t2i.stages.registry import save_stage
from t2i.stages.t5.model import T5, T5Config

NETWORK = "t5"


def point_to_t5(source: str, out: str | Path, dtype: str | None = None) -> int:
    """Write a stage `t5` that reads an encoder of transformers by its name on the hub or from a folder, which must stay
    where it is; its weights are opened when it is first used.

    Returns the width of its states. Raises UsageError where nothing of that name is found, or for numbers that it is
    not read in, DataError for a folder that holds no T5.
    """
    where = os.path.abspath(os.path.expanduser(source)) if os.path.isdir(os.path.expanduser(source)) else source
    name = dtype_name(dtype or "float32")
    if name not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"a T5 is read in float32, bfloat16 or float16, got {name}")
    model = T5(T5Config.model_validate({"source": where, "dtype": name}))
    width = model.width
    with output_folder(out) as folder, sole_writer(folder):
        save_stage(folder, "t5", model)
    return width
