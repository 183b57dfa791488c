"""`t2i convert`: weights of others become a stage folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from t2i.cli.options import check_files, never_silent
from t2i.core.choices import dtype_name


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
    dtype: Annotated[str | None, typer.Option(help="Of the written weights; that of the file if not given.")] = None,
    weights: Annotated[
        Literal["ema", "raw"] | None, typer.Option(help="Averaged or trained, of a file with both; ema if not given.")
    ] = None,
) -> None:
    """Turn published weights (DDPM, IDDPM, ADM, GLIDE, unCLIP, KL autoencoders) into a stage folder. No code in a file
    is ever run."""
    check_files(*(path for path in files if not path.is_dir()))
    if dtype is not None:
        dtype_name(dtype, stored=True)
    from t2i.convert.convert import convert_files

    with never_silent("converting"):
        done = convert_files(files, out, network=network, given=given or (), dtype=dtype, weights=weights)
    typer.echo(f"{out}: a {done.stage}, {done.name}, {done.parameters / 1e6:.1f} M parameters")
