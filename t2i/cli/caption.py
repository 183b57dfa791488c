"""`t2i caption`: a model writes the captions of a whole source of pictures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t2i.cli.options import Device
from t2i.core.errors import DataError, UsageError, explain

if TYPE_CHECKING:
    from t2i.core.decoding import Decoding
    from t2i.data.caption.captioner import Captioner, Kind


def caption(
    src: Annotated[str, typer.Argument(help="A folder of pictures, tar shards (path, glob or braces), or shapes.")],
    with_: Annotated[
        str,
        typer.Option(
            "--with",
            help="A captioner: a folder of t2i train, shapes-dalle3 for its two, a model of transformers by folder or "
            "name, or a server's http://HOST/v1#MODEL; short=A,descriptive=B for two of our own.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the captions, one parquet file for each shard.")],
    kinds: Annotated[str, typer.Option(help="short, descriptive, or both.")] = "short,descriptive",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the model is asked: a sentence, or KIND=SENTENCE for each."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Of shapes: scenes to render, seeds 0, 1, …")] = None,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Of shapes: side of the pictures in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Pictures that are captioned at once.")] = 8,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a caption, at most; 300 if not given, for our own all they can."),
    ] = None,
    min_length: Annotated[int, typer.Option(min=0, help="Tokens of a caption, at least.")] = 0,
    beams: Annotated[int, typer.Option(min=1, help="Beginnings that beam search keeps; 1 is greedy.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="With beams, below 1 favours short captions.")] = 1.0,
    no_repeat: Annotated[int, typer.Option(min=0, help="No so many tokens in a row twice; 0 is off.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest; above, tokens are drawn.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest tokens that have this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of captions that are drawn.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Of a server: seconds for an answer.")] = 60.0,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Of a model of transformers: bfloat16 takes half the memory.")
    ] = None,
) -> None:
    """Write captions of every picture that has none yet; the same command again continues. The pictures stay as they
    are. Under accelerate launch or torchrun, processes share the shards out."""
    from t2i.core.decoding import Decoding
    from t2i.core.progress import to_stderr
    from t2i.data.caption.captioner import check_kinds
    from t2i.data.caption.job import Job
    from t2i.data.caption.store import arrow
    from t2i.data.caption.units import units_of

    to_stderr()
    arrow()
    asked = check_kinds([kind.strip() for kind in kinds.split(",") if kind.strip()])
    with explain("caption", UsageError):
        decoding = Decoding(
            max_length=max_length, min_length=min_length, num_beams=beams, length_penalty=length_penalty,
            no_repeat_ngram=no_repeat, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
    units = units_of(src, out, count=count, size=size)
    rank, world, place = processes(device)
    captioner = open_captioner(with_, asked, prompts_of(prompt, asked), decoding, place, timeout, dtype)
    job = Job(captioner, asked, out, batch_size=batch, seed=seed, rank=rank, world=world)
    job.run(units)
    typer.echo(str(job))


def processes(device: str) -> tuple[int, int, str]:
    """This process's number, how many there are, and its device, as launchers say it; nobody waits for the others."""
    numbers = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    local = os.environ.get("LOCAL_RANK", "0")
    if not all(number.isdigit() for number in (*numbers, local)) or not int(numbers[0]) < int(numbers[1]):
        raise UsageError(f"a launcher said RANK={numbers[0]}, WORLD_SIZE={numbers[1]}, LOCAL_RANK={local}")
    if device in ("auto", "cuda") and int(numbers[1]) > 1:
        import torch

        device = f"cuda:{local}" if torch.cuda.is_available() else device
    return int(numbers[0]), int(numbers[1]), device


def prompts_of(given: Sequence[str] | None, kinds: Sequence["Kind"]) -> "Mapping[Kind, str] | None":
    """What is asked for each kind, None where the user says nothing; UsageError for a prompt without a kind."""
    from t2i.data.caption.captioner import KINDS, PROMPTS

    if not given:
        return None
    prompts, told = dict(PROMPTS), list[str]()
    for text in given:
        kind, _, rest = text.partition("=")
        named = next((one for one in KINDS if one == kind), None)
        if named is None and len(kinds) > 1:
            raise UsageError(f"--prompt is for which kind? Such as --prompt {kinds[0]}=TEXT")
        of = named or kinds[0]
        if of not in kinds or of in told:
            raise UsageError(f"--prompt: {of} captions " + ("have two prompts" if of in told else "are not in --kinds"))
        told.append(of)
        prompts[of] = rest if named is not None else text
        if not prompts[of].strip():
            raise UsageError("--prompt is empty")
    return prompts


def open_captioner(
    name: str,
    kinds: Sequence["Kind"],
    prompts: "Mapping[Kind, str] | None",
    decoding: "Decoding",
    device: str,
    timeout: float = 60.0,
    dtype: str | None = None,
) -> "Captioner":
    """The captioner of `--with`: a server, stages of ours, or a model of transformers, which alone has a `dtype`.

    Raises UsageError and DataError as they do.
    """
    from t2i.core.choices import dtype_name
    from t2i.data.caption.captioner import PROMPTS
    from t2i.io.chat import is_address, open_endpoint

    chosen = "float32" if dtype is None else dtype_name(dtype)
    if is_address(name):
        _no_dtype(dtype, "a server has its own")
        from t2i.data.caption.endpoint import EndpointCaptioner

        questions = {kind: (prompts or PROMPTS)[kind] for kind in kinds}
        return EndpointCaptioner(open_endpoint(name, timeout=timeout), questions, decoding)
    folders: dict[Any, str] = _bundled(name, kinds) or dict.fromkeys(kinds, name)
    if any(name.startswith(f"{kind}=") for kind in PROMPTS):
        folders = {kind: folder for kind, _, folder in (part.partition("=") for part in name.split(","))}
        if missing := [kind for kind in kinds if kind not in folders]:
            raise UsageError(f"--with {name} names no captioner for {missing[0]}; leave that out of --kinds")
    if any(_is_ours(folder) for folder in folders.values()) or len(set(folders.values())) > 1:
        if prompts is not None:
            raise UsageError("--prompt: our own captioners are asked nothing; each was trained for one kind of caption")
        _no_dtype(dtype, "our own captioners write in float32")
        return own_captioner(folders, kinds, decoding, device)
    from transformers.utils import logging

    from t2i.core.devices import device_of, dtype_of
    from t2i.data.caption.pretrained import open_pretrained

    logging.disable_progress_bar()
    asked = PROMPTS if prompts is None else prompts
    return open_pretrained(name, kinds, asked, decoding, device_of(device), dtype_of(chosen))


def _bundled(name: str, kinds: "Sequence[Kind]") -> "dict[Any, str]":
    """The captioners that a model of ours holds, such as `shapes-dalle3`, by kind; none where it is no model, or lacks
    one. DataError for a folder of captioners that is not there."""
    from t2i.hub.index import models
    from t2i.stages.registry import find_stage, stage_in

    place = find_stage(f"weights/{name}" if name in models() else name)
    found = {kind: place / f"captioner-{kind}" for kind in kinds}
    if all(stage_in(folder) is not None for folder in found.values()):
        return {kind: str(folder) for kind, folder in found.items()}
    if name in models() or (name.startswith("weights/") and stage_in(place) is None):
        raise DataError(f"--with {name} holds no captioner of {' and '.join(kinds)} captions")
    return {}


def _no_dtype(dtype: str | None, why: str) -> None:
    if dtype is not None:
        raise UsageError(f"--dtype is for models of transformers; {why}")


def _is_ours(folder: str) -> bool:
    """Whether a folder, or one below the bundled `weights/`, holds a stage, and no model of transformers."""
    from t2i.stages.registry import find_stage, stage_in

    return stage_in(find_stage(folder)) is not None


def own_captioner(
    folders: "Mapping[Kind, str]", kinds: Sequence["Kind"], decoding: "Decoding", device: str
) -> "Captioner":
    """Stages of ours, one for each kind: what one writes follows from what it was fine-tuned on."""
    from t2i.core.devices import device_of
    from t2i.data.caption.own import OwnCaptioner
    from t2i.io.weights import fingerprint
    from t2i.stages.registry import find_stage, load_stage

    if len(kinds) > 1 and len(set(folders.values())) == 1:
        raise UsageError(
            f"--with {folders[kinds[0]]}: a captioner of ours writes one kind; name it with --kinds, or two captioners "
            "with --with short=A,descriptive=B"
        )
    places = {kind: find_stage(folders[kind]) for kind in kinds}
    where = device_of(device)
    writers: dict[Kind, Any] = {kind: load_stage(place, "captioner").to(where) for kind, place in places.items()}
    name = ",".join(dict.fromkeys(str(place) for place in places.values()))
    return OwnCaptioner(writers, decoding, name, fingerprint(places), where)  # type: ignore[arg-type]
