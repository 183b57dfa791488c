"""`t2i eval prompts`: prompts of a benchmark, from a file of the user's."""

from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.options import Device, Model, check_files, check_opening, draw_options, never_silent


def prompts(
    prompt_file: Annotated[
        Path,
        typer.Option("--prompts", help="GenEval's or GenEval 2's .jsonl, DrawBench's .csv, or text, one a line."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and verdicts, in GenEval's layout.")],
    model: Model = "shapes",
    judge: Annotated[
        str,
        typer.Option(help="reader (words of the shapes world), detector=URL, vqa=URL#MODEL, or none: only draw."),
    ] = "none",
    num: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    steps: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    guidance: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    sampler: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stage whose pictures are judged, as in compose.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures drawn at once.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a judge may take for an answer.")] = 60.0,
    device: Device = "auto",
) -> None:
    """Draw the prompts of GenEval, GenEval 2, DrawBench or a list, and have the pictures judged, atom by atom."""
    call = draw_options(None, steps, guidance, sampler, stop_after)
    check_files(prompt_file)
    check_opening(model, call)
    from t2i.core.progress import to_stderr
    from t2i.evals.judges import open_judge
    from t2i.evals.prompt_files import read_cases
    from t2i.evals.prompts import prompts as run
    from t2i.pipeline.base import Pipeline

    to_stderr()
    cases, who = read_cases(prompt_file), open_judge(judge, timeout)
    if who is not None:
        who.check(cases)
    with never_silent("drawing and judging"):
        pipe = Pipeline.from_pretrained(model, device=device)
        report = run(pipe, cases, out, who, num=num, seed=seed, batch=batch, call=dict(call))
    report.save(out / "report.json")
    typer.echo(report.text)
