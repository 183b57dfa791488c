"""`t2i generate`: sentences or classes become pictures; others are inpainted, edited, or drawn again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2i.cli.options import (
    FirstSeed,
    MaxTile,
    Offload,
    Steps,
    StopAfter,
    check_files,
    check_opening,
    draw_options,
    never_silent,
    upsampling_option,
)
from t2i.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline
    from t2i.pipeline.output import Output


SENTENCES = ("dalle2", "glide", "dalle3")
"""Kinds of pipelines that draw what a sentence says."""

Subjects = Annotated[
    list[str] | None, typer.Argument(metavar="WHAT...", help="Sentences, or classes by number or name.")
]
Out = Annotated[Path, typer.Option(help="PNG, JPEG or WebP to write; several pictures get a number each.")]
Model = Annotated[
    str | None, typer.Option(help="A model by name (t2i info lists them), or a folder; shapes if not given.")
]
Guidance = Annotated[str | None, typer.Option(help="S for all guided stages, or stage=S,stage=S.")]
Sampler = Annotated[str | None, typer.Option(help="ddpm, ddim or dpm_solver_pp_2m, or stage=NAME.")]
Image = Annotated[Path | None, typer.Option(help="Picture to change (models that inpaint and edit).")]
Mask = Annotated[Path | None, typer.Option(help="White, or transparent, where --image is drawn anew; the rest stays.")]
Strength = Annotated[float | None, typer.Option(help="How much --image may change without --mask, 0 to 1.")]
From = Annotated[Path | None, typer.Option("--from", help="Repeat this picture, with its own model, device and dtype.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; auto if not given.")]
Dtype = Annotated[str | None, typer.Option(help="float32, or bfloat16 or float16, faster but less exact.")]
Upsample = Annotated[
    str | None,
    typer.Option(
        "--upsample-prompt",
        help="Draw a descriptive caption written from the prompt: lm (the model's own rewriter), rule, the folder of a "
        "rewriter, or a server's http://HOST/v1#MODEL.",
    ),
]
Preset = Annotated[str | None, typer.Option(help="Sample DALL-E 2's chain as karlo, diffusers, laion or the paper do.")]


def generate(
    subjects: Subjects = None,
    out: Out = Path("out.png"),
    model: Model = None,
    seed: FirstSeed = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures per sentence or class.")] = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    negative: Annotated[str | None, typer.Option(help="What to move away from.")] = None,
    image: Image = None,
    mask: Mask = None,
    strength: Strength = None,
    stop_after: StopAfter = None,
    max_tile: MaxTile = None,
    from_: From = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = False,
    preset: Preset = None,
    upsample_prompt: Upsample = None,
) -> None:
    """Draw pictures and write them with how they were made."""
    draw = draw_options(seed, steps, guidance, sampler, stop_after, max_tile)
    recipe = None
    if from_ is not None:
        if (
            subjects
            or draw
            or num != 1
            or any(x is not None for x in (negative, image, mask, strength, preset, upsample_prompt))
        ):
            raise UsageError("--from repeats a picture exactly; give no prompt and no other setting of it")
        recipe = _recipe(from_, model)
        model, device, dtype = model or recipe["model"], device or recipe["device"], dtype or recipe["dtype"]
        preset = recipe.get("preset")
    _check(out, subjects, negative)
    upsampling = _upsampling(upsample_prompt, image)
    check_files(image, mask)
    if check_opening(model or "shapes", draw, dtype, preset) in SENTENCES and not subjects and recipe is None:
        raise UsageError('no prompt given; try: t2i generate "a red cube"')
    task, pictures = _task(image, mask, strength)
    with never_silent("drawing"):
        pipe = _opened(model, device, dtype, offload, preset)
        if recipe is not None:
            result, which = _redrawn(pipe, recipe, from_), [recipe["picture"]]
        else:
            result = _drawn(pipe, task, subjects, num, negative, out, {**pictures, **draw, **upsampling})
            which = list(range(len(result)))
    for i, path in zip(which, result.save(out, which), strict=True):
        typer.echo(f"{path}  seed {result.seeds[i]}")


def _recipe(path: Path, model: str | None) -> dict[str, Any]:
    """How a picture was made; UsageError if nobody knows by which model."""
    from t2i.pipeline.output import recipe_in

    recipe = recipe_in(path)
    if not (model or recipe["model"]):
        raise UsageError(f"{path}: its pipeline was never saved; name the folder of its model with --model")
    return recipe


def _check(out: Path, subjects: list[str] | None, negative: str | None) -> None:
    """Say what needs no model before one is downloaded."""
    from t2i.io.files import writable_file
    from t2i.io.provenance import SAVED, check_extension
    from t2i.pipeline.arguments import check_text

    check_extension(out, SAVED, "--out")
    writable_file(out, "--out")
    for text in subjects or ():
        check_text("prompt", text)
    check_text("negative prompt", negative or "", may_be_empty=True)


def _opened(model: str | None, device: str | None, dtype: str | None, offload: bool, preset: str | None) -> "Pipeline":
    from t2i.core.progress import to_stderr
    from t2i.pipeline.base import Pipeline

    to_stderr()  # a model that is not here yet says that it is downloaded
    return Pipeline.from_pretrained(
        model or "shapes", device=device or "auto", dtype=dtype or "auto", offload=offload, preset=preset
    )


def _drawn(
    pipe: "Pipeline",
    task: str,
    subjects: list[str] | None,
    num: int,
    negative: str | None,
    out: Path,
    given: dict[str, Any],
) -> "Output":
    """The pictures of a call, if the model can draw them and the disk has room."""
    from t2i.io.files import room_for
    from t2i.pipeline.cost import bytes_of, check_pictures

    if pipe.subject == "prompt" and not subjects:
        raise UsageError('no prompt given; try: t2i generate "a red cube"')
    for option, value in (("--negative", negative), ("--upsample-prompt", given.get("upsample_prompt"))):
        if value is not None and pipe.subject != "prompt":
            raise UsageError(f"{option} is for models that read sentences")
    call: Callable[..., Output] | None = getattr(pipe, task, None)
    if call is None:
        raise UsageError(f"this model cannot {task}; those that read sentences can")
    stop_after = given.get("stop_after")
    check_pictures(pipe, stop_after)
    room_for(out.parent, bytes_of(pipe, num * max(len(subjects or ()), 1), stop_after))
    words = {} if negative is None else {"negative_prompt": negative}
    return call(**given, **words, **{pipe.number: num, pipe.subject: subjects or None})


def _task(image: Path | None, mask: Path | None, strength: float | None) -> tuple[str, dict[str, Any]]:
    """The method of a pipeline that is asked for, and the pictures that it is given."""
    if image is None:
        if mask is not None or strength is not None:
            raise UsageError("--mask and --strength are for an --image")
        return "__call__", {}
    if mask is not None and strength is not None:
        raise UsageError("give --mask, to draw a part anew, or --strength, to change the whole")
    from t2i.io.images import open_image
    from t2i.io.masks import open_mask

    given: dict[str, Any] = {"image": open_image(image, keep_alpha=True)}
    if mask is not None:
        return "inpaint", {"image": image, "mask": open_mask(mask)}  # a path: upright, it forgets how EXIF turned it
    return "edit", given if strength is None else given | {"strength": strength}


def _upsampling(how: str | None, image: Path | None) -> dict[str, Any]:
    """The argument of a call that says how prompts are upsampled, checked before a model is opened."""
    if how is not None and image is not None:
        raise UsageError("--upsample-prompt is for pictures drawn from a prompt alone; leave out --image")
    return upsampling_option(how)


def _redrawn(pipe: "Pipeline", recipe: dict[str, Any], path: Path | None) -> "Output":
    """The pictures of a recipe, with warnings where they may be others."""
    from t2i.pipeline.cost import check_pictures
    from t2i.pipeline.output import ALWAYS, check_repeatable

    arguments, words = recipe["arguments"], {"negative_prompt"} if pipe.subject == "prompt" else set()
    check_repeatable(recipe, {*ALWAYS, "max_tile", pipe.subject, *words}, pipe.weights, path)
    try:
        pipe.planner.plan({"stop_after": arguments["stop_after"]})
        check_pictures(pipe, arguments["stop_after"])
        result = pipe(**arguments)
        if "asked" in recipe:  # nobody is asked again, and what was asked stays beside it
            result.recipe["asked"] = [recipe["asked"]] * len(result)
        return result
    except UsageError as error:  # the file is to blame, not who repeats it
        raise DataError(f"{path}: its recipe: {error}") from error
