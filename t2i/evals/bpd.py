"""Bits per dimension: what pictures cost under a decoder, in all and by part of its process.

B batch · N pictures · T steps of the process
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from t2i.core.devices import device_of
from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.core.types import Batch, Condition
from t2i.data.config import DataConfig
from t2i.data.loader import Loader, NothingHeldOutError
from t2i.data.opening import class_names
from t2i.data.shapes.layout import check_num_things
from t2i.data.source import Needs
from t2i.diffusion.config import Diffusion
from t2i.diffusion.likelihood import Bits, bits_per_dim
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.evals.batches import pictures
from t2i.evals.report import Report
from t2i.pipeline.base import Pipeline
from t2i.run import count_channels, count_classes
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.registry import find_stage, load_stage, stage_of


class DiffusionTask(Protocol):
    """A decoder's task: what it is conditioned on, and what its output means."""

    model: Any
    diffusion: Diffusion

    def condition(self, batch: Batch) -> Condition:
        """Of every picture of a batch, nothing dropped."""


@torch.no_grad()
def measure(task: DiffusionTask, process: Process, batches: Iterable[Batch]) -> Bits:
    """The bound of every picture under the decoder of a task, conditioned as in training.

    Args:
        process: the decoder's, or some of its steps.
        batches: on the decoder's device; the noise of a picture follows from its `seed`.
    """
    model, parametrisation, parts = task.model, task.diffusion.parametrisation(), []
    for batch in batches:
        condition = model.project(task.condition(batch))
        streams = Streams(batch["seed"], "bits")
        parts.append(bits_per_dim(model, condition, process, parametrisation, batch["image"], streams))
    return Bits(*(torch.cat(values) for values in zip(*parts, strict=True)))


def summary(bits: Bits, process: Process) -> dict[str, Any]:
    """Means over N pictures as JSON-able numbers; the standard error is None for one picture."""
    num, vb = len(bits.total), bits.vb.mean(dim=0)  # (T,)
    quarters = [part.tolist() for part in torch.arange(process.num_steps).tensor_split(4) if len(part)]
    return {
        "pictures": num,
        "bits_per_dim": bits.total.mean().item(),
        "standard_error": bits.total.std().item() / num**0.5 if num > 1 else None,
        "prior": bits.prior.mean().item(),
        "quarters": [
            {"timesteps": [process.positions[q[0]], process.positions[q[-1]]], "vb": vb[q].sum().item()}
            for q in quarters
        ],
        "timesteps": list(process.positions),
        "vb": vb.tolist(),
        "eps_mse": bits.eps_mse.mean(dim=0).tolist(),
        "x_0_mse": bits.x_0_mse.mean(dim=0).tolist(),
        "each": bits.total.tolist(),
    }


def table(result: dict[str, Any], where: str) -> str:
    """Lines to print of a `summary`: the total, the prior's term, and those of the steps by quarter of the process."""
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    lines = [f"{'bits per dimension':<22}{result['bits_per_dim']:>8.4f}{error}   {result['pictures']} {where}"]
    lines.append(f"{'  prior':<22}{result['prior']:>8.4f}")
    for quarter in result["quarters"]:
        first, last = quarter["timesteps"]
        lines.append(f"{f'  timesteps {first}…{last}':<22}{quarter['vb']:>8.4f}")
    return "\n".join(lines)


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
        num_things: of shapes, weights of scenes with 1 to 4 things; none means one thing for networks over
            classes, which is that of the first thing.
        whole: take pictures that training does not hold out, too.
        seed: order of the pictures, and their noise.

    The facts hold the terms of every step. Raises UsageError for a model without a decoder or without the CLIP of its
    decoder, and for data without what the decoder is conditioned on or with other classes; DataError for unusable data.
    """
    if num_things:
        check_num_things(num_things)
    task, on = _decoder_task(model, device)
    c = task.model.config
    classes = c.ports.classes
    if not num_things and classes is not None:
        num_things = {1: 1.0}
    with explain(f"steps of {model}", UsageError):
        process = task.process if steps is None else task.process.respace(steps)
    config = DataConfig(source=data, size=c.image_size, num_workers=0, num_things=dict(num_things or {}))
    ours = classes.names if classes is not None else ()
    theirs = class_names(config) if ours else ()
    if theirs and theirs != ours:
        raise UsageError(f"{model} knows other classes than {data}: {_few(ours)}, not {_few(theirs)}")
    load = partial(
        Loader,
        config,
        seed=seed,
        batch_size=min(batch, num),
        needs=Needs(task.keys, count_classes(c), count_channels(c)),
    )
    try:
        loader = load(split="train" if whole else "val")
    except NothingHeldOutError:
        whole, loader = True, load(split="train")
    bits = measure(task, process, pictures(loader, num, on))
    result = summary(bits, process)
    facts = {"model": model, "data": data, "held_out": not whole, "seed": seed, **result}
    return Report(table(result, f"{'' if whole else 'held-out '}pictures of {data}"), facts)


def _decoder_task(model: str, device: str) -> tuple[DecoderTask, torch.device]:
    """A decoder with what it is conditioned on, and where it is."""
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
    if (kind := stage_of(decoder).name) != "decoder":
        raise UsageError(f"{model}: bits are counted of a decoder, not of a {kind}")
    ports = decoder.config.ports
    clip = parts.get("clip") if ports.clip_image is not None else None
    if ports.clip_image is not None and clip is None:
        raise UsageError(f"{model}: this decoder reads embeddings of a CLIP; name the model that holds both")
    if ports.text is not None and ports.text.tokenizer is None:
        raise UsageError(f"{model}: its decoder reads text, but its config.json names no tokenizer")
    with explain(model, UsageError):
        return DecoderTask(decoder, DecoderOptions(sampling=Sampling(steps=1), hidden=1), clip=clip), on


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)})"
