"""The trainable stages by name, and how each is saved and loaded."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from t2i.core.assets import asset
from t2i.core.config import parse
from t2i.core.devices import stored_as
from t2i.core.errors import DataError, UsageError, did_you_mean, explain, quoted
from t2i.core.paths import path_of
from t2i.io.int8 import Stored, compact
from t2i.io.weights import MAX_SHARD_SIZE, load_folder, misfit, save_folder
from t2i.stages.stage import Stage

STAGES = {
    "clip": "t2i.stages.clip",
    "prior": "t2i.stages.prior",
    "ar_prior": "t2i.stages.ar_prior",
    "laion_prior": "t2i.stages.dalle2_pytorch.prior",
    "laion_decoder": "t2i.stages.dalle2_pytorch.decoder",
    "decoder": "t2i.stages.decoder",
    "upsampler": "t2i.stages.upsampler",
    "reader": "t2i.stages.reader",
    "classifier": "t2i.stages.classifier",
    "noised_clip": "t2i.stages.noised_clip",
}
"""Name in `config.json` → the package whose `STAGE` says the rest; nothing is imported before it is asked for."""


def stage(name: str) -> Stage:
    """A stage by name; an unknown name raises UsageError with the nearest one."""
    if not isinstance(name, str) or name not in STAGES:
        raise UsageError(f"unknown stage {quoted(name)}; stages are {', '.join(STAGES)}{did_you_mean(name, STAGES)}")
    found: Stage = import_module(STAGES[name]).STAGE
    return found


def stage_of(model: nn.Module) -> Stage:
    """The stage that a model is of: `STAGE` of the module that its class, or one that this derives from, is written in,
    or of a package around it. A compiled model is of the stage of what was compiled."""
    model = getattr(model, "_orig_mod", model)
    for kind in type(model).__mro__:
        module = kind.__module__
        while module and issubclass(kind, nn.Module) and kind is not nn.Module:
            found = getattr(import_module(module), "STAGE", None)
            if isinstance(found, Stage):
                return found
            module = module.rpartition(".")[0]
    raise UsageError(f"{type(model).__name__} is the model of no stage")


def save_stage(
    folder: str | Path,
    name: str,
    model: nn.Module,
    state: dict[str, torch.Tensor] | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write `config.json` and safetensors, of `max_shard_size` bytes at most; `state` replaces the model's own weights,
    for example by their average. `dtype` is that of the stored parameters, `int8` a quarter of float32 (see
    `t2i.io.int8`); buffers, which hold what was measured, keep theirs. UsageError for one that is not stored."""
    measured = {name for name, _ in model.named_buffers()}
    state = model.state_dict() if state is None else state
    stored: Mapping[str, Stored] = state
    if dtype is not None and (wanted := stored_as(dtype)) == torch.int8:
        stored = compact(state, measured)
    elif dtype is not None:
        stored = {k: v.to(wanted) if v.is_floating_point() and k not in measured else v for k, v in state.items()}
    config = {"stage": name, "model": model.config.model_dump(mode="json")}  # type: ignore[union-attr, operator]
    save_folder(folder, config, stored, max_shard_size=max_shard_size)


def find_stage(folder: str | Path) -> Path:
    """A stage's folder by path, or by its path below the bundled `weights/`, such as `weights/shapes/clip`."""
    folder = path_of(folder, "a stage")
    bundled = asset("weights", *folder.parts[1:] if folder.parts[:1] == ("weights",) else folder.parts)
    return folder if folder.is_dir() or not bundled.is_dir() else bundled


def load_stage(folder: str | Path, expect: str | Sequence[str] | None = None) -> nn.Module:
    """The model of a stage folder (see `find_stage`), in float32 on the CPU, in evaluation mode,
    whatever it is stored as.

    `expect` is the kind of stage that it must be, or several that it may be. Folders of earlier versions are read as
    well.

    Raises DataError for a missing, truncated or foreign folder and for weights that do not fit their config.
    """
    folder = find_stage(folder)
    config, state = load_folder(folder)
    name = str(config.get("stage", ""))
    if name not in STAGES:
        raise DataError(f"{folder}: config.json names no known stage (found {name!r})")
    kinds = [expect] if isinstance(expect, str) else expect
    if kinds is not None and name not in kinds:
        raise DataError(f"{folder}: holds a {name}, expected a {' or '.join(kinds)}")
    model_config, found = config.get("model", {}), stage(name)
    elsewhere = model_config.get("pretrained") if isinstance(model_config, dict) else None  # null in what we save
    if elsewhere is not None:
        raise DataError(f"{folder}: config.json wants weights from elsewhere (pretrained={elsewhere!r})")
    unfit = f"{folder}: config.json does not fit this version of t2i"
    with explain(unfit, DataError):
        model = found.model(parse(model_config, found.config, f"{unfit}: model", DataError))
    state = {found.renamed(key): value for key, value in state.items()}
    if problem := misfit(model.state_dict(), state):
        raise DataError(f"{folder}: weights do not fit config.json: the folder {problem}")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval()
