"""`t2i eval`: numbers about models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import Device, Model, draw_options, never_silent, read_num_things, steps_option, upsampling_option
from t2i.cli.pictures import pictures, statistics
from t2i.cli.prompts import prompts
from t2i.cli.report import report

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
app.command()(pictures)
app.command()(statistics)
app.command()(prompts)
app.command()(report)


@app.command()
def compose(
    model: Model = "shapes",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results, with every picture's reading.")] = None,
    rows: Annotated[Path | None, typer.Option(help="JSON lines as GenEval's results are, one a picture.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    steps: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    guidance: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="Stage whose pictures are read; decoder, of DALL-E 3 the last, if not given.")
    ] = None,
    upsample_prompt: Annotated[str | None, typer.Option(help="As in generate: draw what is written out.")] = None,
    device: Device = "auto",
) -> None:
    """Share of pictures that show what GenEval's six tasks ask for, judged by the bundled reader of scenes."""
    _writable(out)
    _writable(rows, "--rows")
    from t2i.evals.compose import compose as run
    from t2i.evals.compose import geneval_row
    from t2i.evals.report import save_rows

    drawn = draw_options(None, steps, guidance, stop_after=stop_after)
    chosen = {**drawn, **upsampling_option(upsample_prompt)}
    with never_silent("drawing and reading pictures"):
        report = run(model, num=num, seed=seed, device=device, call=chosen)
    _tell(report, out)
    if rows is not None:
        save_rows(rows, map(geneval_row, report.facts["pictures"]))


@app.command()
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
    things, chosen = read_num_things(num_things), None if steps is None else steps_option(steps)
    from t2i.evals.bpd import bpd as run

    report = run(
        model, data=data, num=num, batch=batch, steps=chosen, num_things=things, whole=whole, seed=seed, device=device
    )
    _tell(report, out)


@app.command()
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
    chosen = steps_option(steps)
    from t2i.evals.prior import prior as run

    with never_silent("measuring embeddings"):
        report = run(model, data=data, num=num, steps=chosen, seed=seed, device=device)
    _tell(report, out)


@app.command()
def captions(
    model: Annotated[str, typer.Option(help="Folder of a captioner.")],
    decoding: Annotated[
        list[str] | None, typer.Argument(help="How captions are written, such as num_beams=3 no_repeat_ngram=3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results, with every caption.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Held-out renders.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the first render, and of what is drawn by chance.")] = 0,
    device: Device = "auto",
) -> None:
    """Share of captions of held-out renders that name what is there and nothing else, checked against the scenes."""
    _writable(out)
    from t2i.core.config import load
    from t2i.core.decoding import Decoding
    from t2i.evals.captions import captions as run

    chosen = load(None, decoding or [], Decoding)
    with never_silent("writing captions"):
        report = run(model, num=num, seed=seed, decoding=chosen, device=device)
    _tell(report, out)


@app.command()
def latents(
    autoencoder: Annotated[str, typer.Option(help="Folder of an autoencoder.")],
    consistency: Annotated[str | None, typer.Option(help="Folder of a consistency decoder, to compare.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results, with every value.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Held-out renders.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first render, and of the consistency decoder's noise.")] = 0,
    size: Annotated[int, typer.Option(min=8, max=2048, help="Side of the renders in pixels.")] = 256,
    device: Device = "auto",
) -> None:
    """What of held-out renders survives their latents, whole and where patterns are fine."""
    _writable(out)
    from t2i.evals.latents import latents as run

    with never_silent("encoding and decoding pictures"):
        report = run(autoencoder, consistency, num=num, seed=seed, size=size, device=device)
    _tell(report, out)


def _writable(out: Path | None, name: str = "--out") -> None:
    """Say before the work that a file cannot be written after it."""
    if out is not None:
        from t2i.io.files import writable_file

        writable_file(out, name)


def _tell(report: Any, out: Path | None) -> None:
    """Print what was measured, then write it: a disk that has become full costs the file alone."""
    typer.echo(report.text)
    if out is not None:
        report.save(out)
