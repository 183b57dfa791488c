"""The commands that begin with a picture: `t2i variations | interpolate | text-diff` (`pipelines/manipulations.py`) and
`t2i upsample` (`pipelines/upsample.py`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2i.cli.options import (
    Device,
    FirstSeed,
    MaxTile,
    Model,
    Offload,
    Steps,
    StopAfter,
    check_files,
    check_opening,
    draw_options,
    never_silent,
)
from t2i.core.errors import UsageError

if TYPE_CHECKING:
    from t2i.pipeline.arguments import Draw

Image = Annotated[Path, typer.Argument(help="A square picture.")]
Seed = Annotated[int | None, typer.Option(help="Of the noise; random, and told, if not given.")]
Guidance = Annotated[str | None, typer.Option(help="Of the decoder; only 1 brings pictures back as they were.")]
Dtype = Annotated[str, typer.Option(help="float32, or bfloat16 or float16, faster but less exact.")]
Strip = Annotated[Path, typer.Option(help="PNG, JPEG or WebP of one row, or an animated GIF.")]


def variations(
    image: Image,
    out: Annotated[
        Path, typer.Option(help="PNG, JPEG or WebP to write; several pictures get a number each. Or one animated GIF.")
    ] = Path("out.png"),
    num: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 4,
    row: Annotated[bool, typer.Option("--row", help="All pictures in one.")] = False,
    eta: Annotated[float, typer.Option(min=0, max=1, help="Share of fresh noise in every step.")] = 1.0,
    model: Model = "shapes",
    seed: FirstSeed = None,
    steps: Steps = None,
    guidance: Annotated[str | None, typer.Option(help="Of the decoder; the model's own if not given.")] = None,
    stop_after: StopAfter = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
) -> None:
    """Draw pictures in which CLIP sees the same as in this one."""
    chosen = _chosen(model, dtype, out, True, seed, steps, guidance, None, stop_after)
    source = _opened(image)
    with never_silent("drawing"):
        pipe = _manipulating(model, device, dtype, offload, num, stop_after, out)
        result = pipe.variations(source, num, eta=eta, **chosen)
    if row or out.suffix.lower() == ".gif":
        return _write(result, out)
    for path, used in zip(result.save(out), result.seeds, strict=True):
        typer.echo(f"{path}  seed {used}")


def interpolate(
    a: Image,
    b: Annotated[str, typer.Argument(help="Another picture, or a sentence.")],
    out: Strip = Path("out.png"),
    num: Annotated[int, typer.Option(min=2, help="Pictures, with both ends.")] = 7,
    noise: Annotated[str, typer.Option(help="slerp, or fixed: the same noise for all.")] = "slerp",
    model: Model = "shapes",
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    stop_after: StopAfter = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
) -> None:
    """Draw what lies between two pictures, or between a picture and a sentence."""
    from t2i.core.paths import is_picture

    if not is_picture(b):
        _check(b)
    chosen = _chosen(model, dtype, out, True, seed, steps, guidance, None, stop_after)
    ends = _opened(a), _opened(b) if is_picture(b) else b
    with never_silent("drawing"):
        pipe = _manipulating(model, device, dtype, offload, num, stop_after, out)
        result = pipe.interpolate(*ends, num, noise=noise, **chosen)
    _write(result, out)


def text_diff(
    image: Image,
    from_text: Annotated[str, typer.Option(help='What the picture shows, or a dummy, or "".')],
    to_text: Annotated[str, typer.Option(help="What it is to show.")],
    out: Strip = Path("out.png"),
    num: Annotated[int, typer.Option(min=1, help="Pictures, beginning with that one; 1 is the last alone.")] = 5,
    theta: Annotated[float, typer.Option(min=0, max=1, help="How far the last one goes.")] = 0.5,
    model: Model = "shapes",
    seed: Seed = None,
    steps: Steps = None,
    guidance: Annotated[
        str | None, typer.Option(help="Of the decoder, 2 if not given; only 1 begins with the picture as it was.")
    ] = None,
    stop_after: StopAfter = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
) -> None:
    """Change a picture by what one sentence says and another does not."""
    _check(*([from_text] if from_text != "" else []), to_text)
    chosen = _chosen(model, dtype, out, True, seed, steps, guidance, None, stop_after)
    source = _opened(image)
    with never_silent("drawing"):
        pipe = _manipulating(model, device, dtype, offload, num, stop_after, out)
        result = pipe.text_diff(source, from_text, to_text, theta=theta, n=num, **chosen)
    _write(result, out)


def upsample(
    image: Annotated[Path, typer.Argument(help="A picture of any sides that the upsamplers fold.")],
    out: Annotated[Path, typer.Option(help="PNG, JPEG or WebP to write.")] = Path("out.png"),
    start_at: Annotated[
        str, typer.Option(help="The first upsampler: up256, or up1024 for pictures of 256 px and more.")
    ] = "up256",
    model: Model = "shapes",
    seed: Seed = None,
    steps: Steps = None,
    sampler: Annotated[str | None, typer.Option(help="As in generate.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Last upsampler to run, such as up256.")] = None,
    max_tile: MaxTile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
) -> None:
    """Draw a picture larger, by the upsamplers alone: each makes it four times as wide and high."""
    chosen = _chosen(model, dtype, out, False, seed, steps, None, sampler, stop_after, max_tile)
    source = _opened(image)
    with never_silent("drawing"):
        pipe = _pipe(model, device, dtype, offload, "upsample", "has no upsamplers that see pictures alone")
        result = pipe.upsample(source, start_at=start_at, **chosen)
    (path,) = result.save(out)
    typer.echo(f"{path}  {result[0].width} × {result[0].height}  seed {result.seeds[0]}")


def _chosen(model: str, dtype: str, out: Path, moving: bool, *given: Any) -> "Draw":
    """Settings of a call that were given; UsageError for a file that cannot be written, or that is no picture, nor,
    where that may be `moving`, a GIF, and for a model that nobody knows."""
    from t2i.io.files import writable_file
    from t2i.io.provenance import SAVED, check_extension

    check_extension(out, (*SAVED, ".gif") if moving else SAVED, "--out")
    writable_file(out, "--out")
    draw = draw_options(*given)
    check_opening(model, draw, dtype)
    return draw


def _check(*texts: str) -> None:
    """Say of a sentence what needs no model, before one is downloaded."""
    from t2i.pipeline.arguments import check_text

    for text in texts:
        check_text("prompt", text)


def _opened(path: str | Path) -> Any:
    check_files(Path(path))
    from t2i.io.images import open_image

    return open_image(path, keep_alpha=True)


def _manipulating(
    model: str, device: str, dtype: str, offload: bool, num: int, stop_after: str | None, out: Path
) -> Any:
    """A model that takes pictures apart, if the disk has room for what it draws."""
    from t2i.io.files import room_for
    from t2i.pipeline.cost import bytes_of

    lacks = "does nothing with pictures; models whose decoder reads CLIP embeddings do"
    pipe = _pipe(model, device, dtype, offload, "encode", lacks)
    room_for(out.parent, bytes_of(pipe, num, stop_after))
    return pipe


def _pipe(model: str, device: str, dtype: str, offload: bool, task: str, lacks: str) -> Any:
    """A model that has the method `task`; UsageError with what another `lacks`."""
    from t2i.core.progress import to_stderr
    from t2i.pipeline.base import Pipeline

    to_stderr()  # a model that is not here yet says that it is downloaded
    pipe = Pipeline.from_pretrained(model, device=device, dtype=dtype, offload=offload)
    if not hasattr(pipe, task):
        raise UsageError(f"{model} {lacks}")
    return pipe


def _write(result: Any, out: Path) -> None:
    """All pictures in one file."""
    from t2i.io.images import save_gif, save_image, sheet

    if out.suffix.lower() == ".gif":
        save_gif(result.images, out)
    else:
        save_image(sheet(result.images, columns=len(result)), out, result.recipe)
    typer.echo(f"{out}  seed {result.seeds[0]}")
