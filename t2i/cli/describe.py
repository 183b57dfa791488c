"""What this installation and its models are, in words."""

import platform
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2i.core.devices import fast_bfloat16, stored_as
from t2i.core.errors import UsageError, explain
from t2i.diffusion.sampling import Sampling
from t2i.hub.hub import cached, find
from t2i.hub.index import megabytes, models, parts
from t2i.io.files import read_json
from t2i.io.int8 import num_bytes
from t2i.io.weights import stage_folders, stored_dtype
from t2i.stages.registry import find_stage, load_stage, stage
from t2i.version import __version__


def describe(model: str | None = None) -> str:
    """Versions, devices and known models; or the stages, parameters, cost and settings of one model, of one stage, or
    of what a config would train."""
    if model is None:
        return _installation()
    if model.endswith((".yaml", ".yml")):
        return _config(model)
    if (alone := find_stage(model)).is_dir() and (alone / "config.json").is_file():
        return _stage(alone)
    folder = find(model)
    return _published(model) if folder is None else _model(model, folder)


def _installation() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return "\n".join(
        [
            f"t2i {__version__} · Python {platform.python_version()} · torch {torch.__version__}",
            f"device {device} ({name}), {'fast' if fast_bfloat16(device) else 'slow'} bfloat16",
            "bundled models:",
            *(f"  {key:<13} {e.description} ({e.licence})" for key, e in models().items() if not e.published),
            "published models, downloaded and converted on first use (* on this machine):",
            *_groups(),
        ]
    )


def _groups() -> list[str]:
    """Published models by owner and licence, with their sizes."""
    groups: dict[str, list[str]] = {}
    for key, entry in models().items():
        if entry.published:
            owner, _, name = key.rpartition("/")
            star = "*" if (cached(key) / "model_index.json").is_file() else ""
            size = _size(megabytes(key)).replace(" ", "\N{NO-BREAK SPACE}")
            groups.setdefault(f"  {owner}/ ({entry.licence})", []).append(f"{name}{star}\N{NO-BREAK SPACE}{size}")
    wrap = partial(textwrap.fill, width=110, subsequent_indent=" " * 6, break_on_hyphens=False)
    return [wrap(f"{title} {', '.join(names)}").replace("\N{NO-BREAK SPACE}", " ") for title, names in groups.items()]


def _published(model: str) -> str:
    entry = models()[model]
    lines = [f"{model}: {entry.pipeline}, not downloaded yet; {entry.description}"]
    for place, rows in parts(model).items():
        count, size = sum(row.parameters for row in rows), _size(sum(row.megabytes for row in rows))
        lines.append(f"  {place:<17} {count / 1e6:7.2f} M parameters  {size:>7}  {_chosen(entry.settings, place)}")
    return "\n".join(
        [*lines, f"licence {entry.licence}; first use downloads {_size(megabytes(model))} to {cached(model)}"]
    )


def _model(model: str, folder: Path) -> str:
    from t2i.evals.flops import cost  # which imports networks, and open_clip with them, for seconds
    from t2i.pipeline.base import Pipeline

    pipe = Pipeline.from_pretrained(model, device="cpu")
    lines, (plan, _) = [f"{model}: {type(pipe).__name__} in {folder}"], pipe.planner.plan({})
    folders = stage_folders(folder, read_json(folder / "model_index.json"))
    width = max(8, *map(len, pipe.parts))
    draws = set(plan) - ({"autoencoder"} if "consistency" in plan else set())  # either makes the pixels of latents
    repeats, spent = pipe.settings.get("candidates", {}), []  # FLOPs of the stages that a call draws with
    for name, part in pipe.parts.items():
        count = sum(p.numel() for p in part.parameters())
        where = folders.get(name, folder / name)
        size = sum(f.stat().st_size for f in where.glob("*.safetensors"))
        lines.append(
            f"  {name:<{width}} {count / 1e6:7.2f} M parameters {_stored(where):<11} {size / 2**20:6.1f} MiB  "
            f"{_chosen(pipe.settings, name)}"
        )
        if name in plan:
            found, once = cost(part), pipe.planner.stages[name].num_evaluations(part.config, plan[name])
            if not pipe.planner.stages[name].stepped:
                once = 1  # all codes or evaluations of one picture are one example
            flops = None if found is None else found.of(plan[name], once, repeats.get(name, 1))
            spent += [flops] * (name in draws)
            lines[-1] += f"  {_flops(flops)}" if flops is not None else ""
    return "\n".join(lines if None in spent else [*lines, f"  {_flops(sum(filter(None, spent)))} per picture"])


def _stage(folder: Path) -> str:
    """A stage on its own."""
    from t2i.evals.flops import cost

    part = load_stage(folder)
    count, size = sum(p.numel() for p in part.parameters()), sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    found = cost(part)
    spent = f", {_flops(found.step)} per evaluation" if found is not None else ""
    params = f"{count / 1e6:.2f} M parameters {_stored(folder)}".rstrip()
    return f"{folder}: {type(part).__name__}, {params}, {size / 2**20:.1f} MiB{spent}"


def _config(path: str) -> str:
    """What a config would train, and what a picture would cost with the `sampling` of its task."""
    from t2i.evals.flops import cost
    from t2i.pipelines.dalle2 import DALLE2
    from t2i.run import complete, count_classes, load_neighbours, load_run

    run = load_run(path, [])
    spec, config = stage(run.stage), run.model
    here = all(find_stage(folder).is_dir() for folder in run.needs.values())  # what is yet to be trained need not be
    if here and not count_classes(config):  # nor need pictures of a known number of classes
        config = complete(run, spec, load_neighbours(run, spec))
    with explain(path, UsageError), torch.device("meta"):
        part: Any = spec.model(config)
    count, state, dtype = sum(p.numel() for p in part.parameters()), part.state_dict(), stored_as(run.save_dtype)
    size = sum(x.numel() for x in state.values()) * dtype.itemsize
    if dtype == torch.int8:
        size = num_bytes(state, {name for name, _ in part.named_buffers()})
    line = f"{path}: {type(part).__name__}, {count / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB in {run.save_dtype}"
    if (found := cost(part)) is None:
        return line
    if spec.makes is not None and not spec.stepped:
        num, what = spec.num_evaluations(config, Sampling()), "code" if spec.makes == "embeddings" else "evaluation"
        return f"{line}, {_flops(found.once + found.step)} per picture of {num} {what}{'s' * (num > 1)}"
    line += f", {_flops(found.step)} per evaluation"
    if (sampling := getattr(run.task, "sampling", None)) is None:
        return line
    passes = next((slot.candidates or 1 for slot in DALLE2.slots if run.stage in slot.accepts), 1)
    steps, guided = spec.num_evaluations(config, sampling), sampling.guidance != 1
    whole = found.of(sampling, steps, passes)
    times = f"{passes} × " if passes > 1 else ""
    return f"{line}, {_flops(whole)} per picture of {times}{steps} {'guided ' if guided else ''}steps"


def _stored(folder: Path) -> str:
    """What the weights of a stage are on disk; nothing for those of others that are no safetensors."""
    return f"in {found}" if (found := stored_dtype(folder)) else ""


def _chosen(settings: Mapping[str, Mapping[str, Any]], place: str) -> str:
    return ", ".join(f"{what} {values[place]}" for what, values in settings.items() if values.get(place) is not None)


def _flops(number: float) -> str:
    unit = next((unit for unit in "KMGT" if number < 1000 * 1000 ** (1 + "KMGT".index(unit))), "P")
    return f"{number / 1000 ** (1 + 'KMGTP'.index(unit)):.3g} {unit}FLOPs"


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
