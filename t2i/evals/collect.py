"""Features of a set of pictures: in parts, by several processes, safe from kills.

A process takes every world-th part, keeps what it has seen as sums, and writes these to a file of its own now and then.
Who has nothing left to do puts all files together; where a part is missing, another process is at it, or the same
command will be.
"""

import json
import os
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError, quoted
from t2i.core.progress import bar
from t2i.evals.sets import Part, PictureSet
from t2i.io.files import output_folder, read_json, write
from t2i.measures.extractors import Extractor
from t2i.measures.statistics import Facts, Statistics

PART = 256
"""Pictures that one process takes at once."""
SAVE_EVERY = 20.0
"""Seconds of work that a kill can cost."""
_MOST = 20  # pictures that could not be read, and sizes, that are told


class Collection:
    """The statistics of one set by one extractor.

    Args:
        work: folder of what is done so far; None to keep nothing, with one process.
        rank, world: this process and how many there are.
        batch: pictures at once.

    Raises UsageError where the folder is of another set, or of another extractor.
    """

    def __init__(
        self, pictures: PictureSet, extractor: Extractor, work: Path | None = None, *,
        rank: int = 0, world: int = 1, batch: int = 32,
    ) -> None:  # fmt: skip
        self.pictures, self.extractor, self.work = pictures, extractor, work
        self.rank, self.world, self.batch = rank, world, batch
        if pictures.num < 1:
            raise UsageError(f"{pictures.name}: no pictures to measure")
        self.parts = [range(i, min(i + PART, pictures.num)) for i in range(0, pictures.num, PART)]
        self.facts = Facts(
            extractor.name, extractor.sha256, extractor.resize, extractor.dim, extractor.num_classes, pictures.name,
            json.loads(json.dumps(pictures.settings)),
        )  # fmt: skip
        self.embed_text: Any = getattr(extractor, "embed_text", None) if pictures.captioned else None
        self.seen, self.more = Statistics(self.facts, pictures.num), _more()
        self.file = work / f"{os.getpid()}-{time.time_ns()}.safetensors" if work is not None else None

    def see(self) -> None:
        """This process's share of the set, less what was done before."""
        if self.work is None:
            self._see(list(range(len(self.parts))), 0)
            return
        with output_folder(self.work):
            self._check_same(self.work)
            done = set(self._all()[1]["parts"])
            mine = set(range(self.rank, len(self.parts), self.world))
            self._see(sorted(mine - done), sum(len(self.parts[number]) for number in mine & done))

    def complete(self) -> bool:
        """Whether every part was seen, by whichever process."""
        return len(self._all()[1]["parts"]) == len(self.parts)

    def result(self) -> Statistics:
        """The statistics, with what was found out about the pictures among their settings."""
        found, more = self._all()
        told: dict[str, Any] = {"sizes": more["sizes"]}
        if more["num_bad"]:
            told |= {"unreadable": more["num_bad"], "unreadable_such_as": more["bad"]}
        found.facts = replace(self.facts, settings=self.facts.settings | told)
        return found

    def _see(self, numbers: list[int], before: int) -> None:
        total = before + sum(len(self.parts[number]) for number in numbers)
        share = f" ({self.rank + 1} of {self.world})" if self.world > 1 else ""
        saved = time.monotonic()
        what = f"pictures of {self.pictures.name}{share}"
        with bar(total, unit="picture", desc=what, initial=before, show=self.rank == 0, leave=False) as told:
            for number in numbers:
                part = self.parts[number]
                for first in range(part.start, part.stop, self.batch):
                    last = min(first + self.batch, part.stop)
                    self._add(self.pictures.load(first, last))
                    told.update(last - first)
                self.more["parts"].append(number)
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        if numbers:
            self._save()

    def _add(self, part: Part) -> None:
        """Features of pictures of one size at a time; the extractor resizes each alike."""
        self.more["num_bad"] += len(part.bad)
        self.more["bad"] = (self.more["bad"] + [list(bad) for bad in part.bad])[:_MOST]
        sizes: dict[str, list[int]] = defaultdict(list)
        for i, image in enumerate(part.images):
            sizes[f"{image.shape[2]}×{image.shape[1]}"].append(i)
        for rows in sizes.values():
            images = torch.stack([part.images[i] for i in rows])
            text: Tensor | None = None
            if self.embed_text is not None:
                text = self.embed_text([part.captions[i] for i in rows])
            self.seen.add(torch.tensor([part.indices[i] for i in rows]), self.extractor(images), text)
        self.more["sizes"] = sorted({*self.more["sizes"], *sizes})[:_MOST]

    def _save(self) -> None:
        if self.file is not None:
            self.seen.save(self.file, **self.more)

    def _all(self) -> tuple[Statistics, dict[str, Any]]:
        """What all processes have written, ended ones too; of one that keeps nothing, what it has seen."""
        if self.work is None:
            return self.seen, self.more
        found, more = Statistics(self.facts, self.pictures.num), _more()
        for path in sorted(self.work.glob("*.safetensors")):
            part, of_part = Statistics.load_with(path)
            if twice := sorted({*more["parts"]} & {*of_part["parts"]}):
                raise UsageError(f"{path} holds part {twice[0]} a second time: remove {self.work} and begin again")
            found.merge(part)
            more["parts"] += of_part["parts"]
            more["num_bad"] += of_part["num_bad"]
            more["bad"] = (more["bad"] + of_part["bad"])[:_MOST]
            more["sizes"] = sorted({*more["sizes"], *of_part["sizes"]})[:_MOST]
        return found, more

    def _check_same(self, work: Path) -> None:
        """UsageError that says what is different from what the folder holds."""
        mine = {**self.facts.settings, **_facts(self.facts), "pictures": self.pictures.num}
        path = work / "settings.json"
        if not path.exists():
            write(path, json.dumps(mine, indent=1).encode())
        before = read_json(path)
        for key in dict.fromkeys([*before, *mine]):
            if before.get(key) != mine.get(key):
                a, b = quoted(str(before.get(key)), 40), quoted(str(mine.get(key)), 40)
                raise UsageError(f"{work} is of another measurement ({key}: {a}, not {b}): remove it to begin anew")


def _more() -> dict[str, Any]:
    return {"parts": [], "num_bad": 0, "bad": [], "sizes": []}


def _facts(facts: Facts) -> dict[str, Any]:
    return {"source": facts.source, "extractor": facts.extractor, "sha256": facts.sha256, "resize": facts.resize}
