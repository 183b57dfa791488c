"""The trainable stages by name, and how each is saved and loaded."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from t2i.core.assets import asset
from t2i.core.config import Config, parse
from t2i.core.devices import machine_memory, memory_explained, stored_as
from t2i.core.errors import DataError, OutOfMemoryError, UsageError, did_you_mean, explain, quoted, reason
from t2i.core.paths import path_of
from t2i.io.files import read_json
from t2i.io.int8 import Stored, compact
from t2i.io.weights import MAX_SHARD_SIZE, load_config, load_folder, load_shapes, misfit, save_folder
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
    "rewriter": "t2i.stages.rewriter",
    "classifier": "t2i.stages.classifier",
    "noised_clip": "t2i.stages.noised_clip",
    "t5": "t2i.stages.t5",
    "autoencoder": "t2i.stages.autoencoder",
    "consistency_decoder": "t2i.stages.consistency_decoder",
    "captioner": "t2i.stages.captioner",
}
"""Name in `config.json` → the package whose `STAGE` says the rest; nothing is imported before it is asked for."""
_UNFIT = "config.json does not fit this version of t2i"


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
    check_ours(folder)
    measured = {name for name, _ in model.named_buffers()}
    state = model.state_dict() if state is None else state
    stored: Mapping[str, Stored] = state
    if dtype is not None and (wanted := stored_as(dtype)) == torch.int8:
        stored = compact(state, measured)
    elif dtype is not None:
        stored = {k: v.to(wanted) if v.is_floating_point() and k not in measured else v for k, v in state.items()}
    config = {"stage": name, "model": model.config.model_dump(mode="json")}  # type: ignore[union-attr, operator]
    save_folder(folder, config, stored, max_shard_size=max_shard_size)


def check_ours(folder: str | Path) -> None:
    """UsageError for a folder whose `config.json` is of something else than a stage: a stage is not written over it."""
    path = path_of(folder, "a folder") / "config.json"
    if not path.is_file():
        return
    try:
        ours = "stage" in load_config(path.parent)
    except DataError:
        ours = False
    if not ours:
        raise UsageError(f"{path} is of no stage of t2i, and would be replaced: choose another folder")


def stage_in(folder: Path) -> str | None:
    """The name of the stage that a folder says it holds, known or not; None for any other folder."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    name = config.get("stage") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def find_stage(folder: str | Path) -> Path:
    """A stage's folder by path, or by its path below the bundled `weights/`, such as `weights/shapes/clip`."""
    folder = path_of(folder, "a stage")
    bundled = asset("weights", *folder.parts[1:] if folder.parts[:1] == ("weights",) else folder.parts)
    return folder if folder.is_dir() or not bundled.is_dir() else bundled


def outline(found: Stage, config: Config) -> dict[str, Tensor]:
    """The weights of a stage by name, without memory for them, and without a random number drawn.

    Raises:
        ValueError: such a network cannot be built.
        OutOfMemoryError: this machine cannot hold it.
    """
    if getattr(config, "pretrained", None) is not None:  # published weights have the same names, and are read later
        config = config.model_copy(update={"pretrained": None})
    try:
        with torch.device("meta"):
            weights: dict[str, Tensor] = found.model(config).state_dict()
    except (TypeError, ArithmeticError) as error:
        raise ValueError(reason(error)) from error
    count, memory = sum(weight.numel() for weight in weights.values()), machine_memory()
    if 4 * count > memory:
        raise OutOfMemoryError(
            f"a {found.name} of {count:,} weights takes {count / 2.5e8:.1f} GB, this machine has {memory / 1e9:.1f}: "
            "make the network smaller"
        )
    return weights


def new_model(found: Stage, config: Config, where: str) -> nn.Module:
    """A stage with random weights; UsageError that begins with `where` for a config that none can be built from, and
    OutOfMemoryError before anything is allocated for one that is too large."""
    with explain(where, UsageError), memory_explained(f"a {found.name}", "a smaller network"):
        outline(found, config)
        return found.model(config)


def load_stage(folder: str | Path, expect: str | Sequence[str] | None = None) -> nn.Module:
    """The model of a stage folder (see `find_stage`), in float32 on the CPU, in evaluation mode,
    whatever it is stored as. Nothing is allocated before config and weights are known to fit each other.

    `expect` is the kind of stage that it must be, or several that it may be. Folders of earlier versions are read as
    well.

    Raises:
        DataError: a folder is missing, truncated or foreign, or its weights do not fit its config.
        OutOfMemoryError: this machine cannot hold the network.
    """
    folder = find_stage(folder)
    if folder.is_file():
        raise DataError(f"{folder} is a file; a stage is a folder with config.json and model.safetensors (t2i convert)")
    if not (folder / "config.json").exists() and (folder / "model_index.json").exists():
        raise DataError(f"{folder} is a pipeline, expected one of its stages, such as {folder / 'decoder'}")
    found, config = _read_config(folder, expect)
    with explain(f"{folder}: {_UNFIT}", DataError):
        wanted = outline(found, config)
    _check_fit(folder, wanted, {found.renamed(key): weight for key, weight in load_shapes(folder).items()})
    with memory_explained(f"{folder}", "a smaller network"):
        model = found.model(config)
        state = {found.renamed(key): value for key, value in load_folder(folder)[1].items()}
        model.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in state.items()})
    return model.eval()


def _read_config(folder: Path, expect: str | Sequence[str] | None) -> tuple[Stage, Config]:
    """What a folder's `config.json` says that it holds; DataError for what no stage is."""
    content = load_config(folder)
    name = str(content.get("stage", ""))
    if name not in STAGES:
        raise DataError(f"{folder}: config.json names no known stage (found {quoted(name)})")
    kinds = [expect] if isinstance(expect, str) else expect
    if kinds is not None and name not in kinds:
        raise DataError(f"{folder}: holds stage {name}, expected {' or '.join(kinds)}")
    given, found = content.get("model", {}), stage(name)
    elsewhere = given.get("pretrained") if isinstance(given, dict) else None  # null in what we save
    if elsewhere is not None:
        raise DataError(f"{folder}: config.json wants weights from elsewhere (pretrained={quoted(elsewhere)})")
    return found, parse(given, found.config, f"{folder}: {_UNFIT}: model", DataError)


def _check_fit(folder: Path, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """DataError for weights of other names, shapes or kinds of numbers than a config asks for."""
    if problem := misfit(wanted, given):
        raise DataError(f"{folder}: weights do not fit config.json: the folder {problem}")
    for key, weight in given.items():
        if weight.is_floating_point() != wanted[key].is_floating_point():
            kinds = [str(x.dtype).removeprefix("torch.") for x in (weight, wanted[key])]
            raise DataError(f"{folder}: {key!r} is {kinds[0]}, expected {kinds[1]}")
