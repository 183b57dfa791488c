"""`t2i eval`.

compose    a pipeline draws, a reader that knows nothing of it looks, and the share of right pictures is counted
bpd        pictures are told to a decoder, which says how many bits they cost
prior      a prior draws embeddings for captions, with each kind of variance, and they are compared with the true ones
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2i.core.assets import asset
from t2i.core.devices import device_of
from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.loader import VAL_SCENES, DataConfig, Loader, NothingHeldOutError, class_names
from t2i.data.shapes.layout import check_num_things
from t2i.diffusion.sampling import Sampling
from t2i.evals import bpd as likelihood
from t2i.evals import embeddings
from t2i.evals.compose import Prompt, Share, mean, prompts, score, summary
from t2i.io import files
from t2i.io.images import from_pil
from t2i.pipeline.base import Output, Pipeline
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.prior.model import Prior, PriorVariance
from t2i.stages.prior.sample import sample
from t2i.stages.prior.task import PriorOptions, PriorTask
from t2i.stages.reader.model import Detection, Reader
from t2i.stages.reader.task import accuracy, listed
from t2i.stages.registry import find_stage, load_stage

READER = "shapes-reader"
HELD_OUT = 1000  # renders on which the reader itself is tried before it judges
_BATCH = 32


class Report(NamedTuple):
    """A measurement: `text` is a table to print, `facts` all of it as JSON-able values."""

    text: str
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the facts as JSON, into a new folder if need be."""
        files.writable(path.parent)
        files.write(path, json.dumps(self.facts, indent=1).encode() + b"\n")


def compose(
    model: str,
    *,
    num: int = 1,
    seed: int = 0,
    device: str = "auto",
    call: Mapping[str, Any] | None = None,
) -> Report:
    """Draw every prompt of `metrics.compose`, read the pictures and count.

    Args:
        model: a pipeline by name or folder.
        num: pictures per prompt. seed: of the first picture; picture i uses seed + i.
        call: further arguments of the pipeline, such as `steps`, `guidance` and `stop_after`.

    The facts hold the reading of every picture. Raises UsageError if the call draws no pictures.
    """
    pipe = Pipeline.from_pretrained(model, device=device)
    if pipe.subject != "prompt":
        raise UsageError(f"{model} draws {pipe.subject}, and the tasks are sentences")
    reader = load_reader(pipe.device)
    asked = [prompt for prompt in prompts() for _ in range(num)]
    texts = [prompt.text for prompt in prompts()]
    pipe.check_pictures((call or {}).get("stop_after"))
    drawn: Output = pipe(texts, num_images_per_prompt=num, seed=seed, **(call or {}))  # type: ignore[operator]
    readings = [found for part in _batches(drawn) for found in reader.read(part)]
    verdicts = [score(prompt, found) for prompt, found in zip(asked, readings, strict=True)]
    shares = summary([(prompt, right) for prompt, (right, _) in zip(asked, verdicts, strict=True)])
    trust = reader_accuracy(reader, min(drawn.images[0].width, 256), HELD_OUT)
    facts = {
        "model": model,
        "recipe": drawn.recipe,
        "mean": mean(shares),
        "tasks": {task: {**s._asdict(), "share": s.share} for task, s in shares.items()},
        "reader": trust,
        "pictures": [_row(*row) for row in zip(asked, drawn.seeds, verdicts, readings, strict=True)],
    }
    return Report(table(shares, trust), facts)


def bpd(
    model: str,
    *,
    data: str = "shapes",
    num: int = 64,
    batch: int = 8,
    steps: str | int | None = None,
    num_things: Mapping[int, float] | None = None,
    whole: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Report:
    """Bits per dimension of pictures under the decoder of a model.

    Args:
        model: a pipeline that has a decoder, by name or folder, or the folder of a decoder.
        data: shapes, a folder or shards; the pictures of it that training holds out or, if that is none, all.
        num: pictures, at most; none of a folder counts twice. batch: of them at once.
        steps: of the process, spaced as for sampling; all of them if None, as papers do.
        num_things: of shapes, weights of scenes with 1 to 4 things; none means one thing for networks that are told a
            class, which is that of the first thing.
        whole: take pictures that training does not hold out, too.
        seed: order of the pictures, and their noise.

    The facts hold the terms of every step. Raises UsageError for a model without a decoder or without the CLIP of its
    decoder, and for data without what the decoder is told or with other classes; DataError for unusable data.
    """
    if num_things:
        check_num_things(num_things)
    task, on = _decoder_task(model, device)
    c = task.model.config
    if not num_things and c.num_classes is not None:
        num_things = {1: 1.0}
    with explain(f"steps of {model}", UsageError):
        process = task.process if steps is None else task.process.respace(steps)
    config = DataConfig(source=data, size=c.image_size, num_workers=0, num_things=dict(num_things or {}))
    theirs = class_names(config) if c.class_names else ()
    if theirs and theirs != c.class_names:
        raise UsageError(f"{model} knows other classes than {data}: {_few(c.class_names)}, not {_few(theirs)}")
    load = partial(
        Loader,
        config,
        seed=seed,
        batch_size=min(batch, num),
        captioned=task.tokenizer is not None,
        num_classes=c.num_classes,
    )
    try:
        loader = load(split="train" if whole else "val")
    except NothingHeldOutError:
        whole, loader = True, load(split="train")
    bits = likelihood.measure(task, process, likelihood.pictures(loader, num, task.keys, on))
    result = likelihood.summary(bits, process)
    facts = {"model": model, "data": data, "held_out": not whole, "seed": seed, **result}
    return Report(likelihood.table(result, f"{'' if whole else 'held-out '}pictures of {data}"), facts)


def prior(
    model: str, *, data: str = "shapes", num: int = 512, steps: str | int = 8, seed: int = 0, device: str = "auto"
) -> Report:
    """What fixed and analytic variances are worth to a prior that takes few steps.

    One embedding is drawn for each held-out caption, by DDPM's sampler without guidance, from the same noise for every
    variance. As many other pictures show how far apart two sets of true embeddings are.

    Args:
        model: a pipeline with a CLIP and a prior, by name or folder; analytic variances are those that `t2i calibrate`
            has measured.
        data: shapes, a folder or shards; the pictures of it that training holds out.
        num: captions, at most.
        steps: of the process, spaced as for sampling.

    Raises UsageError for a model without a prior and for steps that cannot be, DataError for unusable data.
    """
    pipe = Pipeline.from_pretrained(model, device=device)
    clip, network = pipe.parts.get("clip"), pipe.parts.get("prior")
    if not isinstance(clip, ClipEncoder) or not isinstance(network, Prior):
        raise UsageError(f"{model}: no diffusion prior among {', '.join(pipe.parts)}")
    sampling = Sampling(steps, "ddpm")
    task = PriorTask(network, clip, PriorOptions(sampling=Sampling(steps=1)))
    with explain(f"steps of {model}", UsageError):
        process = task.process.respace(steps)
    kinds: list[PriorVariance] = ["fixed_small", "fixed_large"]
    kinds += ["analytic"] if network.config.variance == "analytic" else []
    loader = Loader(
        DataConfig(source=data, size=clip.image_size, num_workers=0),
        seed=seed,
        batch_size=min(_BATCH, num),
        split="val",
    )
    true: list[Tensor] = []  # (B, D) each
    errors: list[Tensor] = []  # (B, T)
    drawn: dict[PriorVariance, list[Tensor]] = {kind: [] for kind in kinds}
    with torch.no_grad():
        for batch in likelihood.pictures(loader, 2 * num, task.keys, pipe.device):
            true.append(clip.encode_image(batch["image"]).cpu())
            if sum(len(part) for part in errors) < num:
                errors.append(task.squared_errors(batch, process))
                text, seeds = clip.encode_text(batch["caption"]), batch["seed"]
                for kind, parts in drawn.items():
                    streams = Streams(seeds, "eval")
                    parts.append(sample(network, text, streams, sampling, num_candidates=1, variance=kind).cpu())
    z_i, others = torch.cat(true).tensor_split([sum(len(part) for part in errors)])
    rows = {"other pictures": embeddings.compare(others, z_i[: len(others)])} if len(others) > 1 else {}
    for kind, parts in drawn.items():
        rows[kind] = embeddings.compare(torch.cat(parts), z_i)
        rows[kind]["bound"] = embeddings.bound(process, torch.cat(errors).mean(dim=0), network.parametrisation(kind))
    facts = {"model": model, "data": data, "steps": list(process.positions), "pictures": len(z_i), "rows": rows}
    where = f"{process.num_steps} steps, {len(z_i)} held-out pictures of {data}"
    return Report(embeddings.table(rows, where), facts)


def _decoder_task(model: str, device: str) -> tuple[DecoderTask, torch.device]:
    """What tells a decoder about pictures, and where it is."""
    folder = find_stage(model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        on = device_of(device)
        parts: dict[str, Any] = {"decoder": load_stage(folder, expect="decoder").to(on)}
    else:
        pipe = Pipeline.from_pretrained(model, device=device)
        parts, on = pipe.parts, pipe.device
    if "decoder" not in parts:
        raise UsageError(f"{model}: no decoder among {', '.join(parts)}, and only that knows the cost of a picture")
    decoder = parts["decoder"]
    clip = parts.get("clip") if decoder.config.clip_dim is not None else None
    if decoder.config.clip_dim is not None and clip is None:
        raise UsageError(f"{model}: this decoder reads embeddings of a CLIP; name the model that holds both")
    if decoder.config.text is not None and decoder.config.tokenizer is None:
        raise UsageError(f"{model}: its decoder reads text, but its config.json names no tokenizer")
    with explain(model, UsageError):
        return DecoderTask(decoder, clip, DecoderOptions(sampling=Sampling(steps=1), hidden=1)), on


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)})"


def load_reader(device: torch.device | str = "cpu") -> Reader:
    """The bundled reader of scenes."""
    reader = load_stage(asset("weights", READER), expect="reader").to(device)
    assert isinstance(reader, Reader)
    return reader


def reader_accuracy(reader: Reader, size: int = 64, num: int = 256, seed: int = 0) -> dict[str, float]:
    """How well the reader reads held-out renders of `size` pixels: see `stages.reader.task.accuracy`."""
    readings, scenes = [], []
    for first in range(seed, seed + num, _BATCH):
        part = [shapes.scene_from_seed(s | VAL_SCENES) for s in range(first, min(first + _BATCH, seed + num))]
        readings += reader.read(shapes.render(part, size))
        scenes += [listed(scene) for scene in part]
    return {**accuracy(readings, scenes), "renders": num}


def table(shares: Mapping[str, Share], trust: Mapping[str, float]) -> str:
    """Lines to print: a row per task, the mean, how far the reader can be trusted, and what not to compare with."""
    lines = [f"{'task':<20}{'right':>6}{'of':>6}{'share':>9}   95 % interval"]
    for task, s in shares.items():
        lines.append(f"{task:<20}{s.correct:>6}{s.total:>6}{s.share:>8.1%}   {s.low:.1%} … {s.high:.1%}")
    total = sum(s.total for s in shares.values())
    lines.append(f"{'mean of the tasks':<20}{sum(s.correct for s in shares.values()):>6}{total:>6}{mean(shares):>8.1%}")
    lines.append(
        f"the reader itself, on {trust['renders']:.0f} held-out renders: {trust['objects']:.1%} of objects, "
        f"{trust['pictures']:.1%} of whole pictures"
    )
    lines.append("GenEval's tasks by stricter rules, in a world of its own: not to be compared with GenEval's numbers")
    return "\n".join(lines)


def _batches(drawn: Output) -> list[Tensor]:
    pictures = [from_pil(image) for image in drawn.images]
    return [torch.stack(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]


def _row(prompt: Prompt, seed: int, verdict: tuple[bool, str], found: list[Detection]) -> dict[str, Any]:
    seen = [{**d._asdict(), "box": [round(v, 4) for v in d.box], "confidence": round(d.confidence, 3)} for d in found]
    return {
        "task": prompt.task,
        "prompt": prompt.text,
        "seed": seed,
        "right": verdict[0],
        "why": verdict[1],
        "found": seen,
    }
