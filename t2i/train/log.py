"""What a run says: a status line, the same numbers in `metrics.jsonl`, and sums that never wait for the GPU."""

import importlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import quoted, shown
from t2i.core.progress import duration
from t2i.core.reading import clear_errors
from t2i.core.types import Batch, Task, Tokenizer
from t2i.io import files
from t2i.text.words import split

log = logging.getLogger("t2i")


class Meter:
    """Sums of named scalar tensors since the last report, on their device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add detached scalars; no device is waited for."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().float().clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> tuple[list[str], Tensor]:
        """Names, and their means since the last call as one tensor; starts over."""
        found = self.so_far()
        self.sums, self.counts = {}, {}
        return found

    def so_far(self) -> tuple[list[str], Tensor]:
        """The same, and goes on."""
        names = sorted(self.sums)
        return names, torch.stack([self.sums[name] / self.counts[name] for name in names]) if names else torch.empty(0)


class Clock:
    """Where the time goes: training, waiting for data, and everything beside it (saves, samples)."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.start(0.0)

    def start(self, waited: float) -> None:
        """Start an interval; `waited` is the loader's total so far."""
        self.started, self.waited, self.beside = time.perf_counter(), waited, 0.0

    def interval(self, waited: float) -> tuple[float, float]:
        """(training seconds of this interval, fraction of them spent waiting for data); starts a new one."""
        found = self.so_far(waited)
        self.start(waited)
        return found

    def so_far(self, waited: float) -> tuple[float, float]:
        """The same, and goes on."""
        seconds = max(1e-9, time.perf_counter() - self.started - self.beside)
        return seconds, (waited - self.waited) / seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that does not count as training."""
        before = time.perf_counter()
        yield
        self.beside += time.perf_counter() - before

    def minutes(self) -> float:
        """Since the run was started or resumed."""
        return (time.perf_counter() - self.began) / 60


def status_line(row: dict[str, Any], steps: int, left: float) -> str:
    """`step 12000/20000 | 2.4 h left | 3.07M img | 412 img/s | loss 0.0421 | lr 1.0e-04 | gnorm 0.31 | mem 1.2G | data
    4%`, with seconds `left`."""
    return (
        f"step {row['step']}/{steps} | {duration(left)} left"
        f" | {_short(row['images'])} img | {row['img_per_s']:.4g} img/s | loss {row['loss']:.4f}"
        f" | lr {row['lr']:.1e} | gnorm {row['grad_norm']:.2f} | mem {row['memory_gb']:.1f}G"
        f" | data {100 * row['data_fraction']:.0f}%"
    )


def announce(task: Task, first: Batch, device: torch.device, dtype: torch.dtype, prompts: Sequence[str] = ()) -> None:
    """Say what is trained, and what it is about to see."""
    count = sum(p.numel() for p in task.model.parameters() if p.requires_grad) / 1e6
    log.info("%s: %.2fM trainable parameters on %s, %s", type(task.model).__name__, count, device, dtype)
    for key, x in first.items():
        if isinstance(x, Tensor):
            log.info("%s: %s %s in [%.3g, %.3g]", key, tuple(x.shape), x.dtype, x.min(), x.max())
    for caption in first.get("caption", [])[:2]:
        log.info("caption: %s", shown(caption))
    read = first.get("caption", []) if "caption" in task.keys else []
    for captions, whose in ((read, "the first captions"), (prompts, "train.prompts")):
        for problem in (unknown_words(task, captions, whose), cut_captions(task, captions, whose)):
            if problem is not None:
                log.warning(problem)


def unknown_words(task: Task, captions: Sequence[str], whose: str = "the first captions") -> str | None:
    """What to warn of when more than a tenth of the words are none of the vocabulary that a task reads them with."""
    tokenizers = _tokenizers(task)
    if not tokenizers:
        return None
    whom, tokenizer = next(iter(tokenizers.items()))  # a neighbour's, where there is one, is the task's as well
    unknown = [word for caption in captions for word in tokenizer.unknown(caption)]
    total = sum(len(split(caption)) for caption in captions)
    if len(unknown) <= 0.1 * total:
        return None
    told = ", ".join(map(repr, list(dict.fromkeys(unknown))[:3]))
    return (
        f"{len(unknown) / total:.0%} of the words of {whose} are not in the vocabulary and all read alike, such as "
        f"{told}; {_open_vocabulary(task, whom)}"
    )


def cut_captions(task: Task, captions: Sequence[str], whose: str = "the first captions") -> str | None:
    """What to warn of when some captions are longer than a tokeniser that a task reads them with."""
    tokenizers = _tokenizers(task).values()
    cut = [caption for caption in captions if any(tokenizer.truncated(caption) for tokenizer in tokenizers)]
    if not cut:
        return None
    room = min(tokenizer.room for tokenizer in tokenizers)
    count, first = f"of {whose} {len(cut)} of {len(captions)}", quoted(cut[0], 60)
    return f"{count} are longer than the {room} tokens that are read: {first}"


def _tokenizers(task: Task) -> dict[str, Tokenizer]:
    """What a task reads with, by whose it is: a neighbour's name, "" for the model, or `task`."""
    readers: dict[str, Any] = {name: getattr(task, name, None) for name in task.needs} | {"": task.model, "task": task}
    return {name: t for name, reader in readers.items() if (t := getattr(reader, "tokenizer", None)) is not None}


def _open_vocabulary(task: Task, whom: str) -> str:
    """The keys with which a stage reads any word, or the neighbour that must be trained with them first."""
    if whom in task.needs:
        made = "t5.yaml" if whom == "text" else "clip.yaml init=weights/shapes/clip"
        return (
            f"they are read with {whom}, which must be trained to read any word before this stage: t2i train "
            f"configs/shapes/{made} model.tokenizer.kind=clip "
            f"data.source=… train.out=runs/{whom}, and then needs.{whom}=runs/{whom} here"
        )
    section = "model.ports.text." if hasattr(getattr(task.model, "config", None), "ports") else "model."
    return f"{section}tokenizer.kind=clip reads any word"


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def memory_gb(device: torch.device) -> float:
    """Peak memory: allocated on a GPU, resident on a CPU (10⁹ bytes); 0 on systems that do not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return 0.0
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class MetricsFile:
    """`metrics.jsonl`: one line per report; after a resume, lines beyond the resumed step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            rows = files.json_lines(path)
            kept = [row for row in rows if isinstance(row.get("step"), int | float) and row["step"] <= step]
            files.write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: dict[str, Any]) -> None:
        """Append one line."""
        with clear_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
