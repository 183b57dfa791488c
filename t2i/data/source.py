"""What every source of captioned pictures on disk has in common.

A source is addressed at random: `source.load(index, rng)` gives one sample, and all of its chance (which caption, which
crop) comes from `rng`, one random stream per sample.
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from t2i.core.errors import DataError, T2IError, shown
from t2i.core.reading import open_regular
from t2i.core.seed import Streams
from t2i.core.types import Batch
from t2i.data.framing import CropPolicy, framed
from t2i.data.shapes.captions import KINDS, WEIGHTS
from t2i.io.decode import once
from t2i.io.images import from_pil, open_image

MAX_TEXT = 2**20
"""Bytes of a file of captions; larger ones are refused before they are read."""
HEAD = 2**18
"""Bytes of a picture's file that say how large it is."""
MAX_RATIO = 20
"""Of the sides of a picture; what is narrower is refused before it is enlarged into gigabytes."""

_CLEAN = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), " ") | dict.fromkeys(map(ord, "\0\ufeff"))

Sample = dict[str, Any]


class Needs(NamedTuple):
    """What a task needs of every sample.

    Attributes:
        keys: image, caption, label, a kind of caption, such as short, or an array of shards by its name, such as `z` of
            `000.z.npy`. A picture whose caption is not needed and not there has an empty one. With `captions` samples
            hold all of theirs by kind.
        num_classes: samples with other labels than 0 … num_classes-1 are of no use; None for any.
        channels: of pictures, 3 or 1.
    """

    keys: Sequence[str] = ("image", "caption")
    num_classes: int | None = None
    channels: int = 3


class BadSample(Exception):
    """One sample cannot be used; `reason` is a short class of failures, `detail` the particular one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Tally:
    """How often each of several things was met, and the first example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, what: str, example: str) -> None:
        """Count one more."""
        self.counts[what] += 1
        self.examples.setdefault(what, example)

    def add_other(self, name: str) -> None:
        """Count a file of a kind that is not read, by the end of its name."""
        kind = os.path.splitext(name)[1].lower()
        self.add(kind if kind[1:].isalnum() and len(kind) <= 8 else "other files", name)

    def merge(self, other: "Tally") -> None:
        """Count what another one has."""
        self.counts += other.counts
        self.examples = {**other.examples, **self.examples}

    def __str__(self) -> str:
        """`3 hidden (such as .x), 1 .heic (such as a.heic)`, the most frequent first."""
        most = self.counts.most_common(6)
        parts = [f"{count:,} {what} (such as {shown(self.examples[what], 60)})" for what, count in most]
        others = self.counts.total() - sum(count for _, count in most)
        return ", ".join([*parts, *([f"{others:,} others"] if others else [])])


class Source(Protocol):
    """Captioned pictures that can be loaded in any order."""

    @property
    def keys(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def head(self, index: int) -> bytes:
        """The first `HEAD` bytes of a picture; or BadSample."""

    def load(self, index: int, rng: Streams) -> Sample:
        """What `decode` gives, `caption`, `key`, and what else the source holds; or BadSample."""


def read_file(path: str | Path, limit: int, most: int = -1) -> bytes:
    """A regular file of at most `limit` bytes, or `most` of them; BadSample for anything else, before it is read."""
    try:
        with open_regular(path, limit) as file:
            return file.read(limit if most < 0 else most)
    except T2IError as error:
        raise BadSample("unreadable file", str(error)) from None


def decode(
    data: bytes, size: int, crop: int | None, rng: Streams, policy: CropPolicy = "center", channels: int = 3
) -> Sample:
    """Bytes of a picture → `image` (3, size, size), or (1, size, size) of its luminance, in [-1, 1]; see `framed`.

    With `crop`, its side is that. `enlarged` says whether the picture was smaller than `size`.
    """
    try:
        image = open_image(data)
    except DataError as error:
        reason = "too large" if "megapixels" in str(error) else "unreadable picture"
        raise BadSample(reason, str(error)) from None
    if max(image.size) > MAX_RATIO * min(image.size):
        raise BadSample("too narrow", f"{image.width}×{image.height}")
    enlarged = (max if policy == "pad" else min)(image.size) < size
    image = framed(image, size, crop, policy, rng)
    return {"image": from_pil(image, channels=channels), "enlarged": enlarged}


def pick_caption(captions: Mapping[str, Sequence[str]], weights: Mapping[str, float], rng: Streams) -> str:
    """One caption: first a kind by weight, then one of its lines.

    Where no kind of `weights` is at hand, kinds weigh what they do in the shapes world (any other 1), and plain `text`
    counts only where it is the only kind: beside others it repeats one of them. That kinds are lacking is said once.
    """
    kinds = [kind for kind, lines in captions.items() if lines]
    if not kinds:
        raise BadSample("no caption")
    chances = [weights.get(kind, 0.0) for kind in kinds]
    if kinds != ["text"] and (lacking := [kind for kind, weight in weights.items() if weight and kind not in kinds]):
        what, others = " and no ".join(lacking), ", ".join(sorted(kinds))
        once(f"where a picture has no {what} caption (data.captions), another is drawn, of {others}")
    if not sum(chances):
        kinds = [kind for kind in kinds if kind != "text"] or kinds
        chances = [WEIGHTS.get(kind, 1.0) for kind in kinds]
    lines = captions[choose(kinds, chances, rng)]
    return lines[int(rng.integers(len(lines)))]


def kinds_of(captions: Mapping[str, Sequence[str]], needs: Sequence[str], rng: Streams) -> dict[str, str]:
    """A caption of each kind that is needed by name; BadSample where one is not there."""
    found = {}
    for kind in (kind for kind in KINDS if kind in needs):
        if not captions.get(kind):
            raise BadSample(f"no {kind} caption")
        found[kind] = captions[kind][int(rng.integers(len(captions[kind])))]
    return found


def choose(names: Sequence[str], weights: Sequence[float], rng: Streams) -> str:
    """A name with probability proportional to its weight."""
    point = float(rng.uniform()) * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        point -= weight
        if point < 0:
            return name
    return next(n for n, w in zip(reversed(names), reversed(weights), strict=True) if w)


def text_of(data: bytes) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so; UnicodeDecodeError for other encodings."""
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8")


def lines_of(text: str) -> list[str]:
    """The captions of a text file, one per line; an empty file is one empty caption (unconditional)."""
    return [line for part in re.split(r"\r\n|\n|\r", text) if (line := clean(part).strip())] or [""]


def clean(caption: str) -> str:
    """Without byte order marks and NULs; separators that end no line of a file are spaces."""
    return caption.translate(_CLEAN)


RAGGED = ("states", "states_mask")
"""Arrays of as many rows as a caption has tokens."""


def states_of(sample: Sample, captions: Mapping[str, Sequence[str]]) -> Sample:
    """Of `states` (K, L, W) and `states_mask` (K, L) of all K captions, in their order, those of the one that was
    picked, without what the mask hides: (l, W) and (l,)."""
    lines = [line for of_kind in captions.values() for line in of_kind]
    states, mask = sample["states"], sample.get("states_mask")
    if mask is None or states.ndim != 3 or mask.shape != states.shape[:2] or len(states) != len(lines):
        raise BadSample("states that are not of its captions", f"{len(lines)} captions")
    row = lines.index(sample["caption"])
    length = max(1, int(mask[row].sum()))
    return {"states": states[row, :length], "states_mask": mask[row, :length]}


def collate(samples: list[Sample]) -> Batch:
    """Samples → one batch of the keys that they all have; tensors and labels are stacked, the rest become lists. States
    of captions are lengthened to the longest."""
    batch: Batch = {}
    for key in samples[0]:
        if all(key in sample for sample in samples):
            values = [sample[key] for sample in samples]
            if key in RAGGED:
                values = list(pad_sequence(values, batch_first=True))
            if isinstance(values[0], torch.Tensor):
                if any(value.shape != values[0].shape for value in values):
                    raise BadSample("arrays of different shapes", f"{key} of {shown(samples[0]['key'], 60)} and others")
                batch[key] = torch.stack(values)
            else:
                batch[key] = torch.tensor(values) if isinstance(values[0], int) else values
    return batch
