"""`t2i eval pictures` and `t2i eval statistics`: the papers' measures, of models and of pictures in files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import Device, draw_options, never_silent
from t2i.core.errors import UsageError

ModelOrNone = Annotated[str | None, typer.Option(help="Measure what this model draws.")]
Data = Annotated[str | None, typer.Option(help="Measure these pictures: a folder, shards, or shapes.")]
PromptFile = Annotated[Path | None, typer.Option(help="Sentences for the model, one a line; held-out captions if not.")]
Num = Annotated[int | None, typer.Option(min=1, help="Pictures: all files, or 2000 of a model, if not given.")]
Size = Annotated[int | None, typer.Option(min=4, max=8192, help="Frame files to squares of this side; render shapes.")]
Policy = Annotated[str, typer.Option("--crop-policy", help="How files are framed: center, random or pad.")]
Seed = Annotated[int, typer.Option(help="Of the first picture, or scene.")]
Steps = Annotated[str | None, typer.Option(help="As in generate.")]
Guidance = Annotated[str | None, typer.Option(help="As in generate.")]
StopAfter = Annotated[str | None, typer.Option(help="Stage whose pictures are measured, as in compose.")]
Sampler = Annotated[str | None, typer.Option(help="As in generate.")]
Seer = Annotated[
    str,
    typer.Option(help="What sees the pictures: clip, reader, pixels, efficientnet, inception=FILE, dinov2=FILE …"),
]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures at once.")]


def pictures(
    model: ModelOrNone = None,
    data: Data = None,
    against: Annotated[
        str | None, typer.Option(help="The reference: a folder, shards, shapes, or a file of t2i eval statistics.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Such as frechet,kid,is,precision,density,cmmd,clip,diversity; if not given, all that can be."
        ),
    ] = None,
    extractor: Seer = "clip",
    prompts: PromptFile = None,
    num: Num = None,
    size: Size = None,
    crop_policy: Policy = "center",
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    stop_after: StopAfter = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results; with it a killed run goes on.")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="Draws of the bootstrap; 0 for no intervals.")
    ] = None,
    batch: Batch = 32,
    device: Device = "auto",
) -> None:
    """Fréchet distance, KID, Inception Score, precision, recall, CLIP score and more, each with what it depends on."""
    from t2i.cli.caption import processes

    call = draw_options(None, steps, guidance, sampler, stop_after)
    rank, world, place = processes(device)
    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else []
    if metrics is not None and not names:
        raise UsageError("--metrics names none")
    asked = _asked(model, data, prompts, num, size, crop_policy, seed, call, extractor, batch, place)
    from t2i.evals.pictures import pictures as run

    with never_silent("measuring pictures"):
        report = run(asked, against=against, metrics=names, out=out, resamples=resamples, rank=rank, world=world)
    if report is not None:
        typer.echo(report.text)


def statistics(
    out: Annotated[Path, typer.Option(help="File to write, such as reference.safetensors.")],
    model: ModelOrNone = None,
    data: Data = None,
    extractor: Seer = "clip",
    prompts: PromptFile = None,
    num: Num = None,
    size: Size = None,
    crop_policy: Policy = "center",
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    stop_after: StopAfter = None,
    batch: Batch = 32,
    device: Device = "auto",
) -> None:
    """Write what measures need of a set of pictures, which can then stand for it as --against."""
    from t2i.cli.caption import processes

    call = draw_options(None, steps, guidance, sampler, stop_after)
    rank, world, place = processes(device)
    asked = _asked(model, data, prompts, num, size, crop_policy, seed, call, extractor, batch, place)
    from t2i.evals.pictures import statistics as run

    with never_silent("looking at pictures"):
        said = run(asked, out, rank=rank, world=world)
    if said is not None:
        typer.echo(said)


def _asked(*given: Any) -> Any:
    """`Asked`, after what can be said before anything heavy is imported."""
    model, data, prompts, num, size, policy, seed, call, extractor, batch, device = given
    if (model is None) == (data is None):
        raise UsageError("say what to measure: --model or --data, one of both")
    if policy not in ("center", "random", "pad"):
        raise UsageError(f"--crop-policy is center, random or pad, got {policy!r}")
    if model is not None:
        from t2i.cli.options import check_files, check_opening

        check_opening(model, call)
        check_files(prompts)
    from t2i.core.progress import to_stderr
    from t2i.evals.pictures import Asked

    to_stderr()
    return Asked(model, data, prompts, num, size, policy, seed, call, extractor, batch, device)
