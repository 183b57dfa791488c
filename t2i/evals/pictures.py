"""`t2i eval pictures` and `t2i eval statistics`: the papers' measures, of what a model draws or of files."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from t2i.core.errors import DataError, UsageError, shown
from t2i.core.reading import read_bytes
from t2i.data.framing import CropPolicy
from t2i.data.source import lines_of, text_of
from t2i.evals.collect import Collection
from t2i.evals.report import Report
from t2i.evals.sets import Drawn, Files, PictureSet, Scenes
from t2i.io.files import read_json, writable_file
from t2i.measures.extractors import open_extractor
from t2i.measures.measure import METRICS, Number, check_metrics, measure
from t2i.measures.statistics import Statistics, is_statistics
from t2i.pipeline.base import Pipeline

MODEL_NUM = 2000
"""Pictures that a model draws if nobody says how many, and scenes that shapes are."""
_MAX_PROMPTS = 2**26  # bytes


@dataclass(frozen=True)
class Asked:
    """Which pictures to measure, and how to look at them.

    Args:
        model: a pipeline by name or folder; data: a folder, shards or `shapes`; one of both.
        prompts: file of sentences for the model, one a line; None for captions of held-out scenes.
        num: how many; None for all files, or `MODEL_NUM`.
        size: side to which files are framed and scenes rendered; None for files as they are, and 64.
        seed: of the first picture, or scene. call: further arguments of the pipeline.
        extractor: see `open_extractor`. batch: pictures at once.
    """

    model: str | None = None
    data: str | None = None
    prompts: Path | None = None
    num: int | None = None
    size: int | None = None
    policy: CropPolicy = "center"
    seed: int = 0
    call: Mapping[str, Any] | None = None
    extractor: str = "clip"
    batch: int = 32
    device: str = "auto"

    def check(self) -> None:
        """UsageError for what does not go together."""
        if (self.model is None) == (self.data is None):
            raise UsageError("say what to measure: a model, or data, one of both")
        if self.model is None and (self.prompts is not None or self.call):
            raise UsageError("prompts, steps and guidance are of a model, and files are not drawn")

    def pictures(self) -> PictureSet:
        """The set."""
        if self.model is None:
            assert self.data is not None
            return files_or_scenes(self.data, self.num, self.size, self.policy, self.seed)
        prompts = read_prompts(self.prompts) if self.prompts is not None else None
        pipe = Pipeline.from_pretrained(self.model, device=self.device)
        return Drawn(pipe, self.num or MODEL_NUM, prompts=prompts, seed=self.seed, call=self.call)


def files_or_scenes(
    src: str, num: int | None = None, size: int | None = None, policy: CropPolicy = "center", seed: int = 0
) -> PictureSet:
    """A folder, shards, or `shapes`."""
    if src == "shapes":
        return Scenes(num or MODEL_NUM, size or 64, seed)
    return Files(src, num, size, policy)


def read_prompts(path: Path) -> list[str]:
    """The sentences of a text file, one a line; DataError for none, and for what is no text."""
    try:
        prompts = [line for line in lines_of(text_of(read_bytes(path, _MAX_PROMPTS))) if line]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    if not prompts:
        raise DataError(f"{path} holds no prompts, expected one a line")
    return prompts


def pictures(
    asked: Asked,
    *,
    against: str | None = None,
    metrics: Sequence[str] = (),
    out: Path | None = None,
    resamples: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Report | None:
    """Measure a set of pictures.

    Args:
        against: the reference: a folder, shards, `shapes` (as many held-out scenes from the same seed), or a file of
            statistics; None for measures that need none.
        metrics: of `METRICS`; none for all that can be had.
        out: JSON file; beside it, `OUT.parts` holds what is done, so that the same command goes on after a kill. With
            several processes it is needed: the last one to finish writes it.
        resamples: see `measure`.

    Returns None where other processes are not done, or have written the result.

    Raises UsageError and DataError, one line each, for what cannot be opened or does not fit together.
    """
    asked.check()
    if metrics:
        check_metrics(metrics)
        if against is None and (compared := [name for name in metrics if METRICS[name].compares]):
            raise UsageError(f"{compared[0]} compares pictures with others, and none are given: say against what")
    whole = {**_told(asked), "against": against, "metrics": list(metrics), "resamples": resamples}
    work = _work(out, world)
    if world > 1 and out is not None and out.is_file() and _asked_before(out) == whole:
        return None
    reference = Statistics.load(Path(against)) if against is not None and is_statistics(Path(against)) else None
    extractor, drawn = open_extractor(asked.extractor, asked.device), asked.pictures()
    how: Any = {"rank": rank, "world": world, "batch": asked.batch}
    jobs = [Collection(drawn, extractor, work / "pictures" if work else None, **how)]
    if reference is not None:
        jobs[0].facts.check_comparable(reference.facts)
    elif against is not None:
        num = drawn.num if against == "shapes" else None
        others = files_or_scenes(against, num, asked.size, asked.policy, asked.seed)
        jobs.append(Collection(others, extractor, work / "against" if work else None, **how))
    with _together(jobs, out, work) as found:
        if found is None:
            return None
        real = found[1] if len(found) > 1 else reference
        numbers = measure(tuple(metrics) or _possible(found[0], real), found[0], real, resamples=resamples)
        report = _report(numbers, found[0], real, whole)
        if out is not None:
            report.save(out)
        return report


def statistics(asked: Asked, out: Path, *, rank: int = 0, world: int = 1) -> str | None:
    """Write the statistics of a set, which can stand for it as a reference.

    Returns a line that says of what, or None where other processes are not done, or have written them.
    """
    asked.check()
    if not is_statistics(out):
        raise UsageError(f"{out}: statistics are written to a file whose name ends in .safetensors")
    work = _work(out, world)
    if world > 1 and out.is_file() and Statistics.load_with(out)[1] == _told(asked):
        return None
    extractor = open_extractor(asked.extractor, asked.device)
    jobs = [Collection(asked.pictures(), extractor, work, rank=rank, world=world, batch=asked.batch)]
    with _together(jobs, out, work) as found:
        if found is None:
            return None
        found[0].save(out, **_told(asked))
        return f"{out}: {_set(found[0])}, seen by {found[0].facts.extractor} ({found[0].facts.resize})"


@contextmanager
def _together(jobs: list[Collection], out: Path | None, work: Path | None) -> Iterator[list[Statistics] | None]:
    """This process's share is done; then, for one process alone, all of every set, or None where some is missing or
    another process has put it together. What was kept of the parts goes when the context ends well."""
    for job in jobs:
        job.see()
    if out is None or work is None:
        yield [job.result() for job in jobs]
        return
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    with lock:
        complete = work.is_dir() and all(job.complete() for job in jobs)
        yield [job.result() for job in jobs] if complete else None
        if complete:
            shutil.rmtree(work, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)


def _told(asked: Asked) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(asked), default=str))
    return found


def _asked_before(out: Path) -> Any:
    """What an earlier result answers."""
    found = read_json(out)
    return found.get("asked") if isinstance(found, dict) else None


def _work(out: Path | None, world: int) -> Path | None:
    """Where parts are kept."""
    if out is None:
        if world > 1:
            raise UsageError("several processes meet in a file: say where with --out")
        return None
    writable_file(out, "--out")
    return out.with_name(out.name + ".parts")


def _possible(drawn: Statistics, real: Statistics | None) -> tuple[str, ...]:
    """All measures that a set and its reference have what is needed for."""
    has = {"": True, "logits": drawn.scores is not None, "text": bool(drawn.cosines[0])}
    return tuple(name for name, m in METRICS.items() if has[m.needs] and (real is not None or not m.compares))


def _report(numbers: list[Number], drawn: Statistics, real: Statistics | None, asked: dict[str, Any]) -> Report:
    """A table, and all that the numbers depend on below it."""
    width = max(len(number.label) for number in numbers) + 2
    lines = []
    for number in numbers:
        half = f" ± {number.half:<9.2g}" if number.half is not None else " " * 12
        lines.append(f"{number.label:<{width}}{number.value:>10.5g}{half} {number.spread}".rstrip())
    facts = drawn.facts
    lines.append(f"pictures: {_set(drawn)}")
    if real is not None:
        lines.append(f"against: {_set(real)}")
    lines.append(f"seen by {facts.extractor}, weights {facts.sha256[:12]}, resized: {facts.resize}")
    sizes = [set(found.facts.settings.get("sizes", [])) for found in (drawn, real) if found is not None]
    if len(sizes) == 2 and all(sizes) and not sizes[0] & sizes[1]:
        first, other = (sorted(some)[0] for some in sizes)
        lines.append(
            f"! the two sets have no size in common, such as {first} and {other}: a resize may tell them apart"
        )
    lines += [f"! {warning}" for warning in dict.fromkeys(w for number in numbers for w in number.warnings)]
    rows = [{**number._asdict(), "warnings": list(number.warnings)} for number in numbers]
    return Report("\n".join(lines), {"asked": asked, "numbers": rows})


def _set(found: Statistics) -> str:
    """`2000 pictures of shapes (steps prior=8 …, guidance …), 64×64, 3 unreadable`."""
    settings, parts = found.facts.settings, []
    for key in ("steps", "guidance"):
        if key in settings:
            parts.append(f"{key} " + " ".join(f"{name}={value}" for name, value in settings[key].items()))
    told = [f"{found.count} pictures of {found.facts.source}" + (f" ({', '.join(parts)})" if parts else "")]
    if sizes := settings.get("sizes"):
        told.append(sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes or more, such as {sizes[0]} and {sizes[-1]}")
    if unreadable := settings.get("unreadable"):
        key, why = settings["unreadable_such_as"][0]
        told.append(f"{unreadable} more could not be read, such as {shown(key, 60)}: {shown(why, 100)}")
    return ", ".join(told)
