"""A folder of diffusers' unCLIP pipelines, such as kakaobrain/karlo-v1-alpha, opened as it is.

Its own library cannot do that any more: since 0.38 the name of a module in `model_index.json` leads nowhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from t2i.convert.convert import converted_weights
from t2i.core.errors import DataError

PARTS = {
    "clip": ("text_encoder", "image_encoder"),
    "prior": ("prior",),
    "decoder": ("decoder", "text_proj"),
    "up256": ("super_res_first", "super_res_last"),
}
"""Folders of theirs by place in our chain."""


def read_unclip(folder: Path, index: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The stages of such a folder by place, in float32 on the CPU, in evaluation mode; `index` is its
    `model_index.json`.

    Raises DataError for folders that are missing, damaged or of another kind of network.
    """
    parts: dict[str, nn.Module] = {}
    for place, names in PARTS.items():
        needed = [n for n in names if place in ("decoder", "up256") or n == "text_encoder" or any(index.get(n) or ())]
        here = [folder / name for name in names if (folder / name).is_dir()]
        missing = [name for name in needed if folder / name not in here]
        missing += [f"{path.name}/config.json" for path in here if not (path / "config.json").is_file()]
        if missing:
            raise DataError(f"{folder}: lacks {', '.join(missing)}")
        if not here:  # a pipeline for variations has no prior
            continue
        layout, state = converted_weights(here)
        model = layout.model(layout.config)
        model.load_state_dict({key: value.float() for key, value in state.items()})
        parts[place] = model.eval()
    return parts
