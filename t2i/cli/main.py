"""The command line: `t2i generate | variations | interpolate | text-diff | upsample | train | calibrate | assemble |
convert | data | eval | info`.

Nothing heavy is imported before a command runs.

Exit codes: 0 done · 2 wrong usage · 3 bad data or disk · 4 values that are not finite · 5 out of memory ·
75 stopped by a signal, saved.
"""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import Device, FirstSeed, MaxTile, Model, Offload, Steps, StopAfter, by_stage, int_or_text
from t2i.cli.pictures import interpolate, text_diff, upsample, variations
from t2i.core.errors import DataError, T2IError, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write training data.")
eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")


def _version(wanted: bool) -> None:
    if wanted:
        from t2i.version import __version__

        typer.echo(f"t2i {__version__}")
        raise typer.Exit


@app.callback()
def _t2i(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text to picture: DDPM to DALL-E 2, every stage trainable on its own."""


@app.command()
def generate(
    subjects: Annotated[
        list[str] | None, typer.Argument(metavar="WHAT...", help="Sentences, or classes by number or name.")
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG to write; several pictures get a number each.")] = Path("out.png"),
    model: Annotated[
        str | None, typer.Option(help="A model by name (t2i info lists them), or a folder; shapes if not given.")
    ] = None,
    seed: FirstSeed = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures per sentence or class.")] = 1,
    steps: Steps = None,
    guidance: Annotated[str | None, typer.Option(help="S for all guided stages, or stage=S,stage=S.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm_solver_pp_2m, or stage=NAME.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to move away from.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to change (models that inpaint and edit).")] = None,
    mask: Annotated[Path | None, typer.Option(help="White where --image is drawn anew; the rest stays.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much --image may change without --mask, 0 to 1.")] = None,
    stop_after: StopAfter = None,
    max_tile: MaxTile = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Repeat the picture in this PNG, with its own model, device and dtype."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; auto if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, or bfloat16 or float16, faster but less exact.")] = None,
    offload: Offload = False,
    preset: Annotated[
        str | None, typer.Option(help="Sample DALL-E 2's chain as karlo, diffusers, laion or the paper do.")
    ] = None,
) -> None:
    """Draw pictures and write them as PNGs that know how they were made."""
    from t2i.io.files import room_for, writable_file

    given = {
        "negative_prompt": negative, "seed": seed, "stop_after": stop_after, "max_tile": max_tile,
        "steps": by_stage("steps", steps, int_or_text), "guidance": by_stage("guidance", guidance, float),
        "sampler": by_stage("sampler", sampler, str),
    }  # fmt: skip
    recipe = None
    if from_ is not None:
        if subjects or num != 1 or any(x is not None for x in (image, mask, strength, preset, *given.values())):
            raise UsageError("--from repeats a picture exactly; give no prompt and no other setting of it")
        from t2i.pipeline.request import check_repeatable, recipe_in

        recipe = recipe_in(from_)
        model, device, dtype = model or recipe["model"], device or recipe["device"], dtype or recipe["dtype"]
        preset = recipe.get("preset")
        if not model:
            raise UsageError(f"{from_}: its pipeline was never saved; name the folder of its model with --model")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out must end in .png, got {out}")
    writable_file(out, "--out")
    task, pictures = _task(image, mask, strength)
    from t2i.pipeline.base import Pipeline
    from t2i.pipeline.request import check_text
    from t2i.train.log import to_stderr

    for text in subjects or ():  # what needs no model is told before one is downloaded
        check_text("prompt", text)
    check_text("negative prompt", negative or "", may_be_empty=True)
    to_stderr()  # a model that is not here yet says that it is downloaded
    pipe = Pipeline.from_pretrained(
        model or "shapes", device=device or "auto", dtype=dtype or "auto", offload=offload, preset=preset
    )
    if recipe is not None:
        check_repeatable(recipe, pipe, from_)
        result, which = pipe(**recipe["arguments"]), [recipe["picture"]]
    else:
        if pipe.subject == "prompt" and not subjects:
            raise UsageError('no prompt given; try: t2i generate "a red cube"')
        draw = getattr(pipe, task, None)
        if draw is None:
            raise UsageError(f"this model cannot {task}; those that read sentences can")
        pipe.check_pictures(stop_after)
        chosen = {key: value for key, value in given.items() if value is not None} | {pipe.number: num}
        if negative is not None and pipe.subject != "prompt":
            raise UsageError("--negative is for models that read sentences")
        if max_tile is not None and not hasattr(pipe, "upsample"):
            raise UsageError("--max-tile is for models whose upsamplers see pictures alone")
        room_for(out.parent, pipe.bytes_of(num * max(len(subjects or ()), 1), stop_after))
        result = draw(**pictures, **chosen, **{pipe.subject: subjects or None})
        which = list(range(len(result)))
    for i, path in zip(which, result.save(out, which), strict=True):
        typer.echo(f"{path}  seed {result.seeds[i]}")


for command in (variations, interpolate, text_diff, upsample):
    app.command()(command)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, such as configs/shapes/decoder.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Such as train.steps=1000.")
    ] = None,
) -> None:
    """Train one stage. Running the same command again continues where it stopped."""
    from t2i.run import train as run

    run(config, overrides or [])


@app.command()
def calibrate(
    prior: Annotated[str, typer.Argument(help="Folder of a trained prior.")],
    clip: Annotated[str, typer.Option(help="Folder of the CLIP that it was trained with.")],
    out: Annotated[Path, typer.Option(help="Stage folder to write; that of the prior, to change it in place.")],
    num: Annotated[int, typer.Option(min=1, help="Pictures, at most.")] = 256,
    data: Annotated[str, typer.Option(help="shapes, a folder of captioned pictures, or shards.")] = "shapes",
    seed: Annotated[int, typer.Option(help="Of the order of pictures and of their noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Measure a prior's analytic variances, the most likely ones for the network as it is, however few the steps."""
    from t2i.evals.calibrate import calibrate as run

    count = run(prior, clip, out, data=data, num=num, seed=seed, device=device)
    typer.echo(f"{out}: a prior with analytic variances, of {count} pictures")


@app.command()
def assemble(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    stages: Annotated[
        list[str], typer.Argument(metavar="STAGE=FOLDER...", help="Such as clip=runs/clip prior=runs/prior.")
    ],
    kind: Annotated[str, typer.Option(help="Of the pipeline: dalle2, ddpm, adm or glide.")] = "dalle2",
    dtype: Annotated[str, typer.Option(help="Of the written weights: float32, bfloat16 or float16.")] = "bfloat16",
    steps: Annotated[str | None, typer.Option(help="The model's own, stage=N,stage=N.")] = None,
    guidance: Annotated[str | None, typer.Option(help="The model's own, stage=S,stage=S.")] = None,
    sampler: Annotated[str | None, typer.Option(help="The model's own, stage=NAME,stage=NAME.")] = None,
) -> None:
    """Chain stages that were trained on their own into a pipeline folder."""
    pairs = dict(part.split("=", 1) for part in stages if "=" in part)
    if len(pairs) != len(stages):
        raise UsageError(f"expected stage=folder, got {' '.join(stages)}")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    given = {
        "steps": by_stage("steps", steps, int_or_text), "guidance": by_stage("guidance", guidance, float),
        "sampler": by_stage("sampler", sampler, str),
    }  # fmt: skip
    settings = {what: value for what, value in given.items() if value is not None}
    for what, value in settings.items():
        if not isinstance(value, dict):
            raise UsageError(f"--{what}: say of which stage, such as decoder={value}")
    from t2i.io.files import output_folder

    with output_folder(out):
        import torch

        from t2i.pipeline.base import pipeline_class

        pipeline_class(kind).assemble(pairs, settings).save_pretrained(out, getattr(torch, dtype))
    typer.echo(f"{out}: {', '.join(pairs)}")


@app.command()
def convert(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="A .pt, .ckpt or .safetensors file, or a diffusers folder.")
    ],
    out: Annotated[Path, typer.Option(help="Stage folder to write.")],
    network: Annotated[str | None, typer.Option(help="Name of the network that it must be, such as adm-64.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What weights of an unknown network do not show."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the written weights; as in the file if not given.")] = None,
) -> None:
    """Turn published weights (DDPM, IDDPM, ADM, GLIDE, unCLIP) into a stage folder. No code in a file is ever run."""
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UsageError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    import torch

    from t2i.convert.convert import convert_files

    done = convert_files(files, out, network=network, given=given or (), dtype=getattr(torch, dtype) if dtype else None)
    typer.echo(f"{out}: a {done.stage}, {done.name}, {done.parameters / 1e6:.1f} M parameters")


@data_app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 10_000,
    size: Annotated[int, typer.Option(min=8, max=4096, help="Side of the whole picture in pixels.")] = 64,
    crop: Annotated[int | None, typer.Option(min=8, help="Write a random window of this side instead.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Scenes are seed, seed+1, …")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures per tar file.")] = 1000,
    num_things: Annotated[
        str | None,
        typer.Option(help="Weights of scenes with 1 to 4 things, such as 1=1,2=3; half have one by default."),
    ] = None,
) -> None:
    """Render captioned scenes of the shapes world into webdataset shards."""
    from t2i.data.shapes import NUM_THINGS
    from t2i.data.shapes.write import write_shards

    counts = _num_things(num_things) or dict(NUM_THINGS)
    write_shards(out, count=count, size=size, crop=crop, seed=seed, shard_size=shard_size, num_things=counts)


@eval_app.command()
def compose(
    model: Model = "shapes",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results, with every picture's reading.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    steps: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    guidance: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    stop_after: Annotated[str, typer.Option(help="Stage whose pictures are read.")] = "decoder",
    device: Device = "auto",
) -> None:
    """Share of pictures that show what GenEval's six tasks ask for, judged by the bundled reader of scenes."""
    _writable(out)
    from t2i.evals.report import compose as run

    chosen = {
        "steps": by_stage("steps", steps, int_or_text),
        "guidance": by_stage("guidance", guidance, float),
        "stop_after": stop_after,
    }
    _tell(run(model, num=num, seed=seed, device=device, call=chosen), out)


@eval_app.command()
def bpd(
    model: Annotated[str, typer.Option(help="A model by name or folder, or the folder of a decoder.")] = "shapes",
    data: Annotated[str, typer.Option(help="shapes, a folder of pictures, or shards.")] = "shapes",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results, with the terms of every step.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures, at most.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
    steps: Annotated[str | None, typer.Option(help="Such as 100, quicker and looser; all if not given.")] = None,
    num_things: Annotated[
        str | None, typer.Option(help="For shapes, weights of scenes with 1 to 4 things, such as 1=1.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Also pictures that training does not hold out.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of pictures and of their noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Bits per dimension of pictures under a model's decoder: an upper bound of what they cost to store."""
    _writable(out)
    from t2i.evals.report import bpd as run

    chosen = None if steps is None else int_or_text(steps)
    things = _num_things(num_things)
    report = run(
        model, data=data, num=num, batch=batch, steps=chosen, num_things=things, whole=whole, seed=seed, device=device
    )
    _tell(report, out)


@eval_app.command()
def prior(
    model: Model = "shapes",
    data: Annotated[str, typer.Option(help="shapes, a folder of captioned pictures, or shards.")] = "shapes",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    num: Annotated[int, typer.Option(min=2, help="Captions, at most.")] = 512,
    steps: Annotated[str, typer.Option(help="Such as 8.")] = "8",
    seed: Annotated[int, typer.Option(help="Of the order of pictures and of the noise.")] = 0,
    device: Device = "auto",
) -> None:
    """Embeddings that a prior draws with fixed and with analytic variances, beside the true ones."""
    _writable(out)
    from t2i.evals.report import prior as run

    _tell(run(model, data=data, num=num, steps=int_or_text(steps), seed=seed, device=device), out)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A model by name or folder, or a config; none lists all.")] = None,
) -> None:
    """Versions and this machine, or the stages, sizes, cost and settings of a model."""
    from t2i.cli.info import describe

    typer.echo(describe(model))


def _num_things(text: str | None) -> dict[int, float]:
    """`1=1,2=3` → {1: 1.0, 2: 3.0}; empty for None."""
    try:
        pairs = [part.split("=") for part in text.split(",")] if text is not None else []
        return {int(number): float(weight) for number, weight in pairs}
    except ValueError:
        raise UsageError(f"--num-things: expected such as 1=1,2=3, got {text!r}") from None


def _writable(out: Path | None) -> None:
    """Say before the work that a file cannot be written after it."""
    if out is not None:
        from t2i.io.files import writable_file

        writable_file(out, "--out")


def _tell(report: Any, out: Path | None) -> None:
    """Print what was measured, then write it: a disk that has become full costs the file alone."""
    typer.echo(report.text)
    if out is not None:
        report.save(out)


def _task(image: Path | None, mask: Path | None, strength: float | None) -> tuple[str, dict[str, Any]]:
    """The method of a pipeline that is asked for, and the pictures that it is given."""
    if image is None:
        if mask is not None or strength is not None:
            raise UsageError("--mask and --strength are for an --image")
        return "__call__", {}
    if mask is not None and strength is not None:
        raise UsageError("give --mask, to draw a part anew, or --strength, to change the whole")
    from t2i.io.images import open_image, open_mask

    if mask is not None:
        return "inpaint", {"image": open_image(image), "mask": open_mask(mask)}
    return "edit", {"image": open_image(image)} | ({} if strength is None else {"strength": strength})


def main() -> None:
    """Run a command; every expected error is one line on stderr and an exit code, an interrupt is exit code 130."""
    warnings.showwarning = lambda message, category, *_: print(f"warning: {message}", file=sys.stderr)  # type: ignore[assignment]
    try:
        sys.exit(app(standalone_mode=False))
    except T2IError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
        sys.exit(DataError.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # of the option parser; several lines are the help that was asked for
        typer.echo(message if "\n" in message else f"error: {message}", err=True)
        sys.exit(UsageError.exit_code)
