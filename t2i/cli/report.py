"""`t2i eval report`: models side by side on one page."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.options import Device, by_stage, check_files, check_opening, int_or_text, never_silent
from t2i.core.errors import UsageError, quoted


def report(
    models: Annotated[str, typer.Option(help="Models that draw sentences, by name or folder, with commas between.")],
    out: Annotated[Path, typer.Option(help="The page, such as report.html.")] = Path("report.html"),
    prompts: Annotated[
        Path | None, typer.Option(help="Sentences to look at, one a line; six of shapes if not given.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the samples, with commas between.")] = "0,1",
    compose: Annotated[int, typer.Option(min=0, help="Pictures of each prompt of compose; 0 for none.")] = 1,
    num: Annotated[int, typer.Option(min=0, help="Held-out captions to measure on, at least 4; 0 for none.")] = 100,
    guidance: Annotated[str, typer.Option(help="Scales of the decoder for the plot; empty for none.")] = "1,2,4",
    each: Annotated[int, typer.Option(min=2, help="Pictures of a prompt at each of these scales.")] = 4,
    steps: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    extractor: Annotated[str, typer.Option(help="A CLIP, as in eval pictures.")] = "clip",
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at once.")] = 16,
    device: Device = "auto",
) -> None:
    """One page that needs nothing else: samples side by side, what is right, distances, what guidance trades."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    scales = tuple(_numbers(guidance, "--guidance", float))
    firsts = tuple(int(seed) for seed in _numbers(seeds, "--seeds", int))
    if not names or not firsts:
        raise UsageError("--models and --seeds name at least one each")
    if 0 < num < 4:
        raise UsageError(f"--num {num}: distances need 4 pictures or more; 0 for none")
    for name in names:
        check_opening(name, {})
    check_files(prompts)
    how = by_stage("steps", steps, int_or_text)
    from t2i.core.progress import to_stderr
    from t2i.evals.pictures import read_prompts
    from t2i.evals.side_by_side import PROMPTS, Plan
    from t2i.evals.side_by_side import report as run

    to_stderr()
    told = tuple(read_prompts(prompts)) if prompts is not None else PROMPTS
    plan = Plan(told, firsts, compose, num, scales, each, extractor, how, batch)
    with never_silent("drawing and measuring"):
        typer.echo(run(names, out, plan, device=device, command=shlex.join(["t2i", *sys.argv[1:]])))


def _numbers(text: str, name: str, kind: type) -> list[float]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{name}: expected numbers with commas between, got {quoted(text)}") from None
    if len({*found}) < len(found) or any(not number >= 0 for number in found if kind is float):
        raise UsageError(f"{name}: expected different numbers of 0 or more, got {quoted(text)}")
    return found
