"""Resume states: folders that appear whole, are verified when read, and are removed only after a newer one is safe.

    checkpoints/step-000123/   model.safetensors  ema-0.safetensors  optimizer.safetensors  state.json  manifest.json

Tasks that remember something beside the model add a memory.safetensors.
Everything is safetensors and JSON; optimiser tensors go by parameter name. Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import DataError, UsageError, reason, shown
from t2i.io import files, weights
from t2i.train.optim import state_kinds

log = logging.getLogger(__name__)

_SHARD = 2**29
State = dict[str, dict[str, Tensor]]


Seconds = Annotated[float, Field(ge=0, lt=1e9)]


class Numbers(Config):
    """What `state.json` holds."""

    model_config = ConfigDict(extra="ignore", strict=True)
    step: int = Field(ge=0, lt=2**53)
    images: int = Field(ge=0, lt=2**53)
    minutes: float = Field(ge=0, lt=1e9)
    config: dict[str, Any]
    seconds: dict[str, Seconds] = Field({}, description="that a save, a grid and held-out numbers took")


def save(folder: Path, step: int, tensors: State, state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step-000123`, then remove what lies beyond it (a run that went back) and all but the newest `keep`.

    Args:
        tensors: {file name: {tensor name: tensor}}.
        state: JSON-able numbers of the loop.

    Raises:
        DataError: disk full; every earlier checkpoint is still there.
    """
    final = folder / f"step-{step:06d}"
    temporary = files.writable(folder) / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        files.writable(temporary)
        for name, group in tensors.items():
            weights.save_tensors(temporary, group, name=name, max_shard_size=_SHARD)
        files.write(temporary / "state.json", json.dumps(state, indent=2).encode())
        digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
        files.write(temporary / "manifest.json", json.dumps({"step": step, "files": digests}, indent=2).encode())
    except (DataError, UsageError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        replaced = final.with_name(f"{final.name}.old")
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(final, replaced)
    os.replace(temporary, final)
    tidy(folder)
    kept = [path for path in _steps(folder) if _step(path) <= step][:keep]
    for path in _steps(folder):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    return final


def tidy(folder: Path) -> None:
    """Remove half checkpoints of killed runs; one that was moved aside for another that never came is put back."""
    for path in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:
        if path.suffix == ".old" and not path.with_suffix("").exists():
            os.replace(path, path.with_suffix(""))
        else:
            shutil.rmtree(path, ignore_errors=True)


def find(folder: Path, resume: str, whole: bool = True) -> Path | None:
    """The checkpoint to continue from, or None to start anew.

    Args:
        folder: the `checkpoints` of this run.
        resume: `auto` for the newest that verifies, `none`, or the path of a checkpoint or of another run, from which
            a run starts; once it has checkpoints of its own it continues from those, unless the path is one of them.
        whole: False for one that is there and says what it is, its tensors unread.

    Raises:
        UsageError: the path does not exist, or `none` in a run that already has checkpoints.
        DataError: the path, or every checkpoint of the run, is damaged.
    """
    if resume == "none":
        if _steps(folder):
            raise UsageError(f"{folder} already holds checkpoints: choose another out, or resume: auto")
        return None
    path = Path(resume)
    if resume != "auto" and not path.exists():
        raise UsageError(f"resume: {resume} does not exist")
    is_own = folder.resolve() in (path.resolve(), *path.resolve().parents)
    if resume != "auto" and (is_own or not _steps(folder)):
        if (path / "manifest.json").exists():
            if problem := verify(path, whole):
                raise DataError(f"{path} is damaged: {problem}")
            return path
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        if not _steps(folder):
            raise UsageError(f"resume: {resume} holds no checkpoint")
    problems = []
    for path in _steps(folder):
        problem = verify(path, whole)
        if problem is None:
            return path
        log.warning("skipped checkpoint %s: %s", path, problem)
        problems.append(f"{path.name}: {problem}")
    if problems:
        raise DataError(f"no checkpoint of {folder} is whole ({'; '.join(problems)}); remove them to start anew")
    return None


def verify(path: Path, whole: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None; without `whole` only what its small files say. Tensors are read one by
    one: a checkpoint may be larger than memory."""
    try:
        digests = dict(files.read_json(path / "manifest.json")["files"])
        for name, digest in digests.items():
            same = _digest(path / name) == digest if whole else (path / name).stat().st_size == digest["bytes"]
            if not same:
                return f"{name} differs from the manifest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} differs from the manifest: it is gone"
    except (DataError, OSError) as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return "manifest.json is not a manifest"
    try:
        Numbers.model_validate(files.read_json(path / "state.json"))
        bad = non_finite({name: weights.lazy_tensors(path, name) for name in _groups(path)}) if whole else []
    except DataError as error:
        return str(error)
    except ValueError as error:
        return f"state.json: {shown(reason(error))}"
    if bad:  # earlier versions saved these
        return f"{' and '.join(bad)} hold NaN or infinity"
    return None


def non_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Names of the files with trained weights, their averages or optimiser state that are NaN or infinite.

    What no optimiser moves may be: a table that is not measured yet is NaN.
    """
    found = []
    for name, group in tensors.items():
        phase = name.removeprefix("phase") if name.startswith("phase-") else ""
        trained = {key.rpartition("/")[0] for key in tensors.get(f"optimizer{phase}", {})}
        checked = (key for key in group if key in trained or name.startswith("optimizer"))
        if not all(group[key].isfinite().all() for key in checked):
            found.append(name)
    return found


def last_good(folder: Path) -> str:
    """What to do about a run that diverged, in words."""
    if not (steps := _steps(folder)):
        return "nothing was saved yet, so the same command starts anew: with another optim.lr"
    return f"{steps[0].name} is the last good one; the same command continues from there with another optim.lr"


def load(path: Path, renamed: Callable[[str], str] = str) -> tuple[State, dict[str, Any]]:
    """What `save` was given: (tensors, state), tensors of models under the names that they have today."""
    tensors = {name: weights.load_tensors(path, name) for name in _groups(path)}
    for name, group in tensors.items():
        if name in ("model", "optimizer") or name.startswith("ema-"):
            tensors[name] = {renamed(key): value for key, value in group.items()}
    return tensors, files.read_json(path / "state.json")


def load_model(model: nn.Module, values: dict[str, Tensor], path: Path) -> None:
    """Put weights into a model, or say in one line how they differ."""
    if problem := weights.misfit(model.state_dict(), values):
        raise UsageError(f"{path} does not fit this model: it {problem}")
    model.load_state_dict(values)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{`parameter/exp_avg`: tensor …} of every parameter that has been stepped."""
    return {
        f"{name}/{key}": value
        for name, p in model.named_parameters()
        if p in optimizer.state
        for key, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """Restore what `optimizer_state` gave, in the memory layout of the parameters.

    What another kind of optimiser kept, and state of parameters that are frozen now, is left out with a warning.
    """
    parameters = dict(model.named_parameters())
    kinds = {p: state_kinds(group) for group in optimizer.param_groups for p in group["params"]}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in values.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            raise UsageError(f"the checkpoint has optimiser state of {name!r}, which this model does not have")
        found.setdefault(name, {})[kind] = value
    left = 0
    for name, state in found.items():
        p = parameters[name]
        if kinds.get(p) != state.keys() or any(x.ndim and x.shape != p.shape for x in state.values()):
            left += 1
            continue
        for kind, value in state.items():
            if value.ndim:
                value = torch.empty_like(p, dtype=value.dtype).copy_(value)
            optimizer.state[p][kind] = value.to(p.device)
    if left:
        log.warning(
            "optimiser state of %d of %d parameters starts anew: optim.kind or optim.only is another", left, len(found)
        )


def _groups(path: Path) -> set[str]:
    """Names of what a checkpoint holds, such as model, whether in one file or in shards."""
    return {
        re.sub(r"(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?\.safetensors$", "", file.name) for file in path.glob("*.safetensors")
    }


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(r"step-\d+", p.name) and p.is_dir()]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name[5:])


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
