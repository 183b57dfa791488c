"""`t2i train`, `t2i calibrate`, `t2i assemble`: stages, on their own and chained."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import Device, draw_options, is_stage, never_silent
from t2i.core.assets import bundled_configs, find_config
from t2i.core.errors import DataError, UsageError
from t2i.core.progress import Alive


def train(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, such as configs/shapes/decoder.yaml; t2i configs lists them.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Such as train.steps=1000.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would see, need and take; write nothing.")
    ] = False,
    wants_help: Annotated[
        bool, typer.Option("--help", help="Show this message; after a config, every key that it may have.")
    ] = False,
) -> None:
    """Train one stage. Running the same command again continues where it stopped."""
    if wants_help and config is None:
        typer.echo(context.get_help())
        return
    if config is None:
        raise UsageError("which config? Such as t2i train configs/shapes/decoder.yaml; t2i configs lists them")
    find_config(config)  # before seconds of imports
    if wants_help:
        from t2i.cli.keys import list_keys

        typer.echo(list_keys(config, overrides or []))
    elif dry_run:
        from t2i.cli.dry_run import dry_run as tell

        with Alive("trying a few steps, a grid and an evaluation"):
            for line in tell(config, overrides or []):
                typer.echo(line)
    else:
        from t2i.run import train as run

        run(config, overrides or [])


def configs() -> None:
    """List the training configs at hand, with what each is for."""
    names = bundled_configs()
    width = max(map(len, names))
    for name in names:
        with open(find_config(name), encoding="utf-8") as file:
            typer.echo(f"{name:<{width}}  {file.readline().lstrip('# ').rstrip()}")


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

    with never_silent("measuring variances"):
        count = run(prior, clip, out, data=data, num=num, seed=seed, device=device)
    typer.echo(f"{out}: a prior with analytic variances, of {count} pictures")


def assemble(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    stages: Annotated[
        list[str], typer.Argument(metavar="STAGE=FOLDER...", help="Such as clip=runs/clip prior=runs/prior.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="Of the pipeline: dalle2, dalle3, ddpm, adm or glide; that with such stages if not given."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16 or int8.")] = "bfloat16",
    steps: Annotated[str | None, typer.Option(help="The model's own, stage=N,stage=N.")] = None,
    guidance: Annotated[str | None, typer.Option(help="The model's own, stage=S,stage=S.")] = None,
    sampler: Annotated[str | None, typer.Option(help="The model's own, stage=NAME,stage=NAME.")] = None,
) -> None:
    """Chain stages that were trained on their own into a pipeline folder."""
    pairs = dict(part.split("=", 1) for part in stages if "=" in part)
    if len(pairs) != len(stages):
        raise UsageError(f"expected stage=folder, got {' '.join(stages)}")
    settings: dict[str, Any] = dict(draw_options(None, steps, guidance, sampler))
    for what, value in settings.items():
        if not isinstance(value, dict):
            raise UsageError(f"--{what}: say of which stage, such as decoder={value}")
    from t2i.core.choices import dtype_name
    from t2i.hub.index import kind_name
    from t2i.io.files import output_folder

    if kind is not None:
        kind_name(kind)
    dtype_name(dtype, stored=True)
    for name, folder in pairs.items():
        if not is_stage(folder):
            raise DataError(f"{name}={folder} is no stage: a folder with config.json, of t2i train or t2i convert")
    with never_silent("assembling"), output_folder(out):
        from t2i.pipeline.loading import kind_of, pipeline_class

        pipeline_class(kind or kind_of(pairs)).assemble(pairs, settings).save_pretrained(out, dtype)
    typer.echo(f"{out}: {', '.join(pairs)}")
