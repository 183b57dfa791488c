"""`t2i convert`: weights of others become a stage folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from t2i.cli.options import check_files, never_silent
from t2i.core.choices import dtype_name
from t2i.core.errors import UsageError


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
    """Turn published weights (DDPM, IDDPM, ADM, GLIDE, unCLIP, KL autoencoders, the consistency decoder) into a stage
    folder; or, with --dtype, store a stage of yours in another precision. No code in a file is ever run.

    With --network t5 the file is the folder, or the name on the hub, of a T5 encoder of transformers: the stage keeps
    its name, and its weights stay where they are.
    """
    if network == "t5":
        return _point_to_t5(files, out, dtype, given or weights)
    check_files(*(path for path in files if not path.is_dir()))
    if dtype is not None:
        dtype_name(dtype, stored=True)
    from t2i.convert.convert import convert_files

    with never_silent("converting"):
        done = convert_files(files, out, network=network, given=given or (), dtype=dtype, weights=weights)
    typer.echo(f"{out}: a {done.stage}, {done.name}, {done.parameters / 1e6:.1f} M parameters")


def _point_to_t5(files: list[Path], out: Path, dtype: str | None, of_no_use: object) -> None:
    if len(files) != 1 or of_no_use:
        raise UsageError("--network t5 takes one name or folder, and neither --set nor --weights")
    from t2i.convert.text import point_to_t5

    with never_silent("looking for it"):
        width = point_to_t5(str(files[0]), out, dtype)
    typer.echo(f"{out}: a t5 of width {width}, which reads {files[0]} where it is")
