"""Captions for a whole source, part by part: only what is missing is written, and a kill loses at most 64 pictures.

Batches are cut from the start of each part, and stand in the journal whole or not at all: a run that was killed asks
the captioner the same batches as one that was not, and so leaves the same files. Only where a captioner fails do parts
of batches stand there, as rows that lack a caption.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL.Image import Image
from tqdm import tqdm

from t2i.core.errors import UNSEEN, DataError, T2IError, UsageError, lacks_memory, reason, shown
from t2i.core.progress import bar
from t2i.data.caption.captioner import Captioner, Kind, seed_of
from t2i.data.caption.store import COLUMNS, JOURNAL, SUFFIX, Journal, Row, arrow, plain, read_rows, write_rows
from t2i.data.caption.units import Raw, Unit
from t2i.data.source import BadSample, Tally, clean
from t2i.io.files import output_folder
from t2i.io.lock import remove_temporaries

log = logging.getLogger(__name__)

FLUSH = 64
"""Pictures that a kill may lose; a batch has no more."""
GIVE_UP = 32
"""Pictures in a row for which a captioner writes nothing, before the job ends."""
MAX_CAPTION = 2**16
"""Characters of a caption; a server that writes more has not heard how many tokens it may."""


class Job:
    """Runs a captioner over the parts of a source.

    Args:
        captioner: see `Captioner`.
        kinds: what it writes of each picture.
        out: folder of the captions, one file for each part; it may be that of the pictures, which stay as they are.
        batch_size: pictures that the captioner is given at once, at most `FLUSH`.
        seed: of captions that are drawn by chance.
        rank, world: this process and the number of processes: each takes every `world`-th part.

    `written` and `kept` count pictures, `silent` those in a row that the captioner wrote nothing of; `failed` are those
    that have no caption, by reason. Until it has `worked`, parts where it wrote nothing wait; then they are done again.
    """

    def __init__(
        self,
        captioner: Captioner,
        kinds: Sequence[Kind],
        out: Path,
        *,
        batch_size: int = 8,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        arrow()
        if not 1 <= batch_size <= FLUSH:
            raise UsageError(f"batch_size must be from 1 to {FLUSH}, got {batch_size}")
        self.captioner, self.kinds, self.out, self.batch_size, self.seed = captioner, kinds, out, batch_size, seed
        self.rank, self.world = rank, world
        self.written = self.kept = self.silent = 0
        self.worked, self.trouble = False, ""  # whether the captioner has written something, and why it did not
        self.known: tuple[str, Raw] | None = None  # a picture that has captions
        self.failed, self.others = Tally(), Tally()

    def run(self, units: Sequence[Unit]) -> None:
        """Caption what is missing.

        Raises:
            UsageError: the folder cannot be written to, or another process writes the same captions.
            DataError: a file of captions is damaged, the disk is full, or the captioner writes nothing any more.
        """
        mine = units[self.rank :: self.world]
        share = f" ({self.rank + 1} of {self.world})" if self.world > 1 else ""
        total = sum(len(unit.keys) for unit in mine)
        with output_folder(self.out), bar(total, unit="img", desc=f"captions{share}", show=self.rank == 0) as told:
            later = [unit for unit in mine if not self._caption(unit, told)]
            if later:
                self.worked = self.worked or self._works()
                if not self.worked:
                    raise DataError(self.trouble)
                self.silent = 0
            for unit in later:
                self._caption(unit, told)

    def _caption(self, unit: Unit, told: tqdm) -> bool:
        """Caption a part; False where that must wait until the captioner has written something."""
        folder = (self.out / unit.name).parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        with _alone(self.out / f"{unit.name}{SUFFIX}"):
            return _Part(self, unit, told).run()

    def _works(self) -> bool:
        """Whether the captioner writes of a picture that has captions already: then it is not down, and refuses those
        that have none."""
        if self.known is None:
            return False
        key, raw = self.known
        with suppress(BadSample):
            image = raw.open()
            return all(isinstance(self.texts([image], kind, [key])[0], str) for kind in self.kinds)
        return False

    def texts(self, images: Sequence[Image], kind: Kind, keys: Sequence[str]) -> list[str | Exception]:
        """What the captioner writes, or what went wrong; where a batch fails as a whole, its pictures are shown one by
        one."""
        seeds = [seed_of(self.seed, key, kind) for key in keys]
        try:
            found = list(self.captioner.caption(images, kind, seeds))
        except UsageError:
            raise
        except Exception as error:  # whatever a picture provokes in a model costs that picture
            if lacks_memory(error) or (isinstance(error, T2IError) and not isinstance(error, DataError)):
                raise
            if len(images) == 1:
                return [error]
            pairs = zip(images, keys, strict=True)
            return [text for image, key in pairs for text in self.texts([image], kind, [key])]
        if len(found) != len(images):
            raise DataError(f"{self.captioner.name} wrote {len(found)} captions for {len(images)} pictures")
        return [text if isinstance(text, Exception) else _said(text) for text in found]

    def __str__(self) -> str:
        """What was done, in one line."""
        share = f"process {self.rank + 1} of {self.world}: " if self.world > 1 else ""
        failed = f", {self.failed.counts.total():,} without a caption: {self.failed}" if self.failed.counts else ""
        others = f" ({self.others})" if self.others.counts else ""
        return f"{share}{self.written:,} pictures captioned, {self.kept:,} were there{others}{failed}"


class _Part:
    """One part of a job: `done` are rows that need nothing more, `before` those of earlier runs, by key."""

    def __init__(self, job: Job, unit: Unit, told: tqdm) -> None:
        self.job, self.unit, self.told = job, unit, told
        self.keys = [plain(key) for key in unit.keys]
        self.path = job.out / f"{unit.name}{SUFFIX}"
        self.journal = Journal(job.out / f"{unit.name}{JOURNAL}")
        begun = {row["key"]: row for row in self.journal.rows}
        whole = {key for key, row in begun.items() if row["error"] or all(row[kind] is not None for kind in job.kinds)}
        self.done = {key: row for key, row in begun.items() if key in whole}
        self.before = {row["key"]: row for row in read_rows(self.path)}
        self.before |= {key: row for key, row in begun.items() if key not in whole}  # fewer kinds were asked for
        self.pending: list[list[Row]] = []
        self.doubtful: list[list[Row]] = []  # batches in a row for which the captioner wrote nothing
        self.kept: list[Row] = []  # nothing was missing
        there = {key for key, row in self.done.items() if row["error"] is None}
        job.kept, job.worked = job.kept + len(there.intersection(self.keys)), job.worked or bool(there)

    def run(self) -> bool:
        """Every batch, then the whole file; False and no file where the captioner wrote nothing here, nor before."""
        size = self.job.batch_size
        try:
            for first in range(0, len(self.keys), size):
                if sum(map(len, self.pending + self.doubtful)) + size > FLUSH:
                    self.flush()
                self.batch(range(first, min(first + size, len(self.keys))))
            if self.doubtful and not self.job.worked:
                self.told.update(-len(self.keys))
                return False
            self.pending += self.doubtful
            self.doubtful = []
        finally:
            self.flush()
        self.finish()
        return True

    def finish(self) -> None:
        """The whole file, and what was found."""
        for row in self.kept:
            self.keep(row)
        rows = {key: self.done[key] for key in self.keys}
        for row in (row for row in rows.values() if row["error"]):
            what, _, _ = row["error"].partition(": ")
            self.job.failed.add(what, row["key"])
        rows |= {key: row for key, row in (self.before | self.done).items() if key not in rows}  # pictures are gone
        if list(rows.values()) != list(self.before.values()):
            write_rows(self.path, rows.values())
        self.journal.remove()

    def flush(self) -> None:
        """Bring what is pending to the disk, and the captions in doubtful batches, as rows to be completed."""
        begun = [{**row, "error": None} for rows in self.doubtful for row in rows if self.gained(row)]
        if batches := [rows for rows in (*self.pending, begun) if rows]:
            self.journal.append(batches)
        self.pending = []
        self.before |= {row["key"]: row for row in begun}

    def batch(self, numbers: range) -> None:
        """Caption what is missing of a batch."""
        new: list[tuple[Row, Raw]] = []
        rows: list[Row] = []
        for i in numbers:
            key = self.keys[i]
            if key in self.done or any(row["key"] == key for row in rows):  # a.jpg beside a.png
                continue
            row, raw = self.begun(key, i)
            rows.append(row)
            if raw is not None and any(row[kind] is None for kind in self.job.kinds):
                new.append((row, raw))
            elif raw is not None:
                self.done[key] = row
                self.kept.append(row)
                self.job.known = self.job.known or (key, raw)
        rows = [row for row in rows if row["key"] not in self.done]
        asked = self.write(new)
        for row in rows:
            self.done[row["key"]] = self.same(row)
        self.told.update(len(numbers))
        self.judge(rows, asked)

    def begun(self, key: str, i: int) -> tuple[Row, Raw | None]:
        """The row of a picture with what is known of it; without a picture where its file cannot be read."""
        empty: Row = dict.fromkeys(COLUMNS) | {"key": key, "hash": "", "seconds": 0.0}
        before = self.before.get(key, empty)
        try:
            raw = self.unit.read(i)
        except BadSample as error:
            return {**before, "error": plain(str(error))}, None
        alt = raw.alt if raw.alt is None else plain(raw.alt)
        if before["hash"] == raw.hash:
            return {**before, "alt": alt, "error": None}, raw
        return {**empty, "hash": raw.hash, "alt": alt}, raw

    def write(self, new: Sequence[tuple[Row, Raw]]) -> list[Row]:
        """Fill in the captions of pictures; those that were shown to the captioner."""
        shown_: list[tuple[Row, Image]] = []
        for row, raw in new:
            try:
                shown_.append((row, raw.open()))
            except BadSample as error:
                row["error"] = plain(str(error))
        for kind in self.job.kinds:
            lacking = [(row, image) for row, image in shown_ if row[kind] is None]
            if not lacking:
                continue
            began = time.perf_counter()
            texts = self.job.texts([image for _, image in lacking], kind, [row["key"] for row, _ in lacking])
            each = round((time.perf_counter() - began) / len(lacking), 4)
            for (row, _), text in zip(lacking, texts, strict=True):
                row["seconds"] += each
                if isinstance(text, Exception):
                    row["error"] = f"no {kind} caption: {plain(shown(reason(text), 300))}"
                else:
                    self.sign(row, kind, text)
        return [row for row, _ in shown_]

    def sign(self, row: Row, kind: Kind, text: str) -> None:
        """A caption, and who wrote it how."""
        row[kind] = text
        for column, value in self.signature(kind).items():
            before: Mapping[str, Any] = json.loads(row[column]) if row[column] else {}
            row[column] = json.dumps({**before, kind: value}, ensure_ascii=False, sort_keys=True)

    def signature(self, kind: Kind) -> dict[str, Any]:
        """Columns that say who writes, and how."""
        captioner = self.job.captioner
        return {"model": captioner.name, "revision": captioner.revision, "settings": dict(captioner.settings[kind])}

    def keep(self, row: Row) -> None:
        """Count a row that needs nothing, and whether another model, or other settings, wrote it."""
        self.job.kept += 1
        for kind in self.job.kinds:
            for column, value in self.signature(kind).items():
                theirs = json.loads(row[column] or "{}").get(kind)
                if theirs != value:
                    self.job.others.add(f"{kind} of {column} {shown(theirs, 60)}", row["key"])
                    break

    def same(self, row: Row) -> Row:
        """The row that was there before, if it differs in nothing but the time."""
        before = self.before.get(row["key"])
        if before is not None and {**before, "seconds": 0} == {**row, "seconds": 0}:
            return before
        self.job.written += row["error"] is None
        return row

    def gained(self, row: Row) -> bool:
        """Whether a row has a caption that was not there before."""
        before = self.before.get(row["key"], {})
        kinds = [kind for kind in self.job.kinds if row[kind] is not None]
        return any((before.get("hash"), before.get(kind)) != (row["hash"], row[kind]) for kind in kinds)

    def judge(self, rows: list[Row], asked: Sequence[Row]) -> None:
        """Note a batch; DataError where the captioner has written nothing for too long. That a picture failed before
        says nothing of the captioner."""
        if not rows:
            return
        job, new = self.job, [row for row in asked if not self.before.get(row["key"], {}).get("error")]
        self.doubtful.append(rows)
        if any(row["error"] is None for row in asked):
            job.worked, job.silent = True, 0
        else:
            job.silent += len(new)
        if not job.silent:
            self.pending += self.doubtful
            self.doubtful = []
        elif new:
            name, key, why = shown(job.captioner.name, 100), shown(new[-1]["key"], 60), new[-1]["error"]
            job.trouble = f"{name} wrote no caption for {job.silent} pictures in a row, such as {key}: {why}"
            if job.silent >= GIVE_UP:
                raise DataError(job.trouble)


def _said(text: str) -> str | Exception:
    """A caption in one line without characters that nobody sees, or why there is none."""
    line = " ".join(UNSEEN.sub(" ", clean(text)).split())
    if len(line) > MAX_CAPTION:
        return DataError(f"the captioner wrote {len(line):,} characters, more than {MAX_CAPTION:,}")
    return line if any(map(str.isalnum, line)) else DataError("the captioner wrote nothing")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the captions of a part; UsageError where another process does."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path} is being written by another process; wait for it or choose another --out") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
