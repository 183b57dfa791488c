"""`t2i data`: training data."""

from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.options import read_num_things

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write training data.")


@app.callback()
def _data() -> None:
    """Write training data."""


@app.command()
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

    counts = read_num_things(num_things) or dict(NUM_THINGS)
    write_shards(out, count=count, size=size, crop=crop, seed=seed, shard_size=shard_size, num_things=counts)
