"""`t2i data`: training data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import Device, read_num_things

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
    paths = write_shards(out, count=count, size=size, crop=crop, seed=seed, shard_size=shard_size, num_things=counts)
    typer.echo(f"{out}: {count} captioned pictures in {len(paths)} shards")


@app.command()
def encode(
    src: Annotated[str, typer.Argument(help="shapes, a folder of pictures, or tar shards (path, glob or braces).")],
    autoencoder: Annotated[str, typer.Option(help="Folder of the autoencoder that makes the latents.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    text: Annotated[str | None, typer.Option(help="Folder of a text encoder, to keep its states as well.")] = None,
    recaptions: Annotated[
        str | None, typer.Option(help="Folder of captions that t2i caption wrote, if not beside the pictures.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, max=8192, help="Side of the pictures in pixels.")] = 256,
    count: Annotated[int, typer.Option(min=1, help="Of shapes: how many scenes.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of shapes: scenes are seed, seed+1, …")] = 0,
    num_things: Annotated[str | None, typer.Option(help="Of shapes: as in t2i data shapes.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures per tar file.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are encoded at once.")] = 16,
    device: Device = "auto",
) -> None:
    """Turn pictures into latents, and captions into states, once; training on them holds no encoder.

    Missing shards are written, so the same command continues a broken-off one. Train on OUT with task.cached=true.
    """
    counts = read_num_things(num_things)
    from t2i.core.devices import device_of
    from t2i.core.errors import UsageError, named
    from t2i.core.progress import to_stderr
    from t2i.core.types import LatentCodec, TextEncoder
    from t2i.data.encode import Files, Samples, Scenes
    from t2i.data.encode import encode as write
    from t2i.stages.registry import load_stage, stage_of

    to_stderr()
    place = device_of(device)
    found: dict[str, Any] = {}
    for name, folder, kind in (("autoencoder", autoencoder, LatentCodec), ("text", text, TextEncoder)):
        if folder is None:
            continue
        with named(f"--{name} {folder}"):
            found[name] = load_stage(folder).requires_grad_(False)
        if not isinstance(found[name], kind):
            raise UsageError(f"--{name} {folder} holds stage {stage_of(found[name]).name}, which is no {kind.__name__}")
    if recaptions is not None and src == "shapes":
        raise UsageError(f"--recaptions={recaptions}: shapes are not files, and caption themselves")
    samples: Samples = Scenes(size, count, seed, counts) if src == "shapes" else Files(src, size, recaptions)
    write(out, samples, **found, device=place, shard_size=shard_size, batch_size=batch)
