"""`t2i eval`: a pipeline draws, a reader that knows nothing of it looks, and the share of right pictures is counted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i import storage
from t2i.assets import asset
from t2i.data import shapes
from t2i.data.loader import VAL_SCENES
from t2i.images import from_pil
from t2i.metrics.compose import Prompt, Share, mean, prompts, score, summary
from t2i.pipeline import Output, Pipeline
from t2i.registry import load_stage
from t2i.stages.reader.model import Detection, Reader
from t2i.stages.reader.task import accuracy, listed

READER = "shapes-reader"
HELD_OUT = 1000  # renders on which the reader itself is tried before it judges
_BATCH = 32


def compose(
    model: str,
    *,
    out: Path | None = None,
    num: int = 1,
    seed: int = 0,
    device: str = "auto",
    call: Mapping[str, Any] | None = None,
) -> str:
    """Draw every prompt of `metrics.compose`, read the pictures and count.

    Args:
        model: a pipeline by name or folder.
        out: JSON file for the results, with the reading of every picture.
        num: pictures per prompt. seed: of the first picture; picture i uses seed + i.
        call: further arguments of the pipeline, such as `steps`, `guidance` and `stop_after`.

    Returns a table to print. Raises UsageError if the call draws no pictures or `out` cannot be written.
    """
    if out is not None:
        storage.writable_file(out, "--out")
    pipe = Pipeline.from_pretrained(model, device=device)
    reader = load_reader(pipe.device)
    asked = [prompt for prompt in prompts() for _ in range(num)]
    texts = [prompt.text for prompt in prompts()]
    pipe.check_pictures((call or {}).get("stop_after"))
    drawn: Output = pipe(texts, num_images_per_prompt=num, seed=seed, **(call or {}))  # type: ignore[operator]
    readings = [found for part in _batches(drawn) for found in reader.read(part)]
    verdicts = [score(prompt, found) for prompt, found in zip(asked, readings, strict=True)]
    shares = summary([(prompt, right) for prompt, (right, _) in zip(asked, verdicts, strict=True)])
    trust = reader_accuracy(reader, min(drawn.images[0].width, 256), HELD_OUT)
    if out is not None:
        rows = [_row(*row) for row in zip(asked, drawn.seeds, verdicts, readings, strict=True)]
        tasks = {task: {**s._asdict(), "share": s.share} for task, s in shares.items()}
        result = {
            "model": model,
            "recipe": drawn.recipe,
            "mean": mean(shares),
            "tasks": tasks,
            "reader": trust,
            "pictures": rows,
        }
        storage.write(out, json.dumps(result, indent=1).encode() + b"\n")
    return table(shares, trust)


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
