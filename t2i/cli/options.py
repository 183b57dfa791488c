"""Options that several commands have, and how values for each stage are written."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2i.core.errors import UsageError, did_you_mean, quoted
from t2i.core.progress import Alive

if TYPE_CHECKING:
    from t2i.pipeline.arguments import Draw

Model = Annotated[str, typer.Option(help="A model by name (t2i info lists them), or a folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
FirstSeed = Annotated[int | None, typer.Option(help="Picture i uses seed + i; random, and told, if not given.")]
Steps = Annotated[str | None, typer.Option(help="N for all stages, or stage=N,stage=N; also spacings such as ddim50.")]
MaxTile = Annotated[
    int | None,
    typer.Option(min=1, help="Pixels of a side that upsamplers see at once: less memory, for large pictures."),
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep a stage on the GPU only while it draws: less of its memory, slower.")
]
StopAfter = Annotated[str | None, typer.Option(help="Last stage to run, such as decoder.")]


def never_silent(what: str) -> AbstractContextManager[object]:
    """A context that says every 30 seconds on stderr that `what` still lasts, where no terminal shows a bar."""
    return nullcontext() if sys.stderr.isatty() else Alive(what, partial(typer.echo, err=True))


def check_model(model: str) -> str | None:
    """The kind of a model's pipeline, whether it is here or yet to be downloaded; UsageError for one that nobody knows.
    Nothing heavy is imported."""
    return _kind_and_stages(model)[0]


def _kind_and_stages(model: str) -> tuple[str | None, list[str]]:
    """See `check_model`; and the names of the stages, none of a model that others wrote."""
    from t2i.hub.hub import find
    from t2i.hub.index import models
    from t2i.io.files import read_json

    if (folder := find(model)) is None:
        return models()[model].pipeline, list(models()[model].parts)
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict):
        return None, []
    places = [name for name, entry in index.items() if isinstance(entry, list)] if "_t2i_version" in index else []
    return index.get("_class_name"), places


def check_opening(model: str, draw: "Draw", dtype: str | None = None, preset: str | None = None) -> str | None:
    """`check_model`, and UsageError for stages that it does not have, and for a dtype or a preset that nobody knows."""
    from t2i.core.choices import dtype_name
    from t2i.hub.index import presets

    kind, places = _kind_and_stages(model)
    if dtype is not None:
        dtype_name(dtype)
    if preset is not None and preset not in presets():
        known = f"known: {', '.join(presets())}{did_you_mean(preset, presets())}"
        raise UsageError(f"unknown preset {quoted(preset)}; {known}")
    named = [("stop_after", draw["stop_after"])] if draw.get("stop_after") else []
    named += [(what, name) for what, given in draw.items() if isinstance(given, dict) for name in given]
    for what, name in named if places else ():
        if name not in places:
            has = f"this model has {', '.join(places)}{did_you_mean(name, places)}"
            raise UsageError(f"{what}: unknown stage {quoted(name)}; {has}")
    return kind


def check_files(*paths: Path | None) -> None:
    """UsageError or DataError for files that cannot be read."""
    from t2i.core.reading import open_regular

    for path in paths:
        if path is not None:
            with open_regular(path):
                pass


def is_stage(folder: str) -> bool:
    """Whether a folder, or one below the bundled `weights/`, holds a stage."""
    from t2i.core.assets import asset
    from t2i.core.paths import path_of

    name = str(path_of(folder, "a model")).removeprefix("weights/")
    return any((place / "config.json").is_file() for place in (path_of(folder), asset("weights", name)))


def by_stage(what: str, text: str | None, convert: Any) -> Any:
    """`30` → one value; `prior=10,decoder=30` → a dict. A comma parts stages only before the name of one."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return convert(text)
        pairs = [part.split("=") for part in re.split(r",(?=[^,=]*=)", text)]
        return {name.strip(): convert(value) for name, value in pairs}
    except ValueError:
        raise UsageError(f"--{what}: expected a number or stage=number,stage=number, got {quoted(text)}") from None


def steps_option(text: str) -> int | str:
    """One value of --steps."""
    from t2i.pipeline.arguments import check_steps

    return check_steps("--steps", int_or_text(text))


def int_or_text(text: str) -> int | str:
    """A whole number, or the text itself."""
    text = text.strip()
    return int(text) if re.fullmatch("[+-]?[0-9]+", text) else text


def upsampling_option(how: str | None) -> dict[str, Any]:
    """The argument of a call that says how prompts are upsampled, checked before a model is opened; none for None."""
    if how is None:
        return {}
    from t2i.text.upsampling import check_upsample_prompt

    check_upsample_prompt(how)
    return {"upsample_prompt": how}


def draw_options(
    seed: int | None = None,
    steps: str | None = None,
    guidance: str | None = None,
    sampler: str | None = None,
    stop_after: str | None = None,
    max_tile: int | None = None,
) -> "Draw":
    """What was given of what every call takes, see `Draw`."""
    from t2i.core.choices import sampler_name
    from t2i.pipeline.arguments import check_draw, check_steps, seeds_of

    if seed is not None:
        seeds_of(seed, 1)
    given = {
        "seed": seed,
        "steps": by_stage("steps", steps, int_or_text),
        "guidance": by_stage("guidance", guidance, float),
        "sampler": by_stage("sampler", sampler, str),
        "stop_after": stop_after,
        "max_tile": max_tile,
    }
    draw: Draw = {key: value for key, value in given.items() if value is not None}  # type: ignore[assignment]
    check_draw(draw)
    chosen = draw.get("sampler", {})
    for stage, name in chosen.items() if isinstance(chosen, dict) else [("", chosen)]:
        sampler_name(f"sampler of {stage}" if stage else "--sampler", name)
    if "steps" in draw and not isinstance(draw["steps"], dict):
        check_steps("--steps", draw["steps"])
    return draw


def read_num_things(text: str | None) -> dict[int, float]:
    """`1=1,2=3` → {1: 1.0, 2: 3.0}; empty for None."""
    try:
        pairs = [part.split("=") for part in text.split(",")] if text is not None else []
        return {int(number): float(weight) for number, weight in pairs}
    except ValueError:
        raise UsageError(f"--num-things: expected such as 1=1,2=3, got {quoted(text)}") from None
