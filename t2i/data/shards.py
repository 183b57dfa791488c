"""Webdataset shards, read with our own index: `00000.tar` holding `000000000.jpg`, `.txt`, `.json`.

Members are found once per tar from their headers (`t2i.data.tars`) and then read at random with `pread`; nothing is
extracted and nothing is ever unpickled.
"""

import glob
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from t2i.core.errors import DataError, UsageError, lacks_memory, quoted, shown
from t2i.core.paths import IMAGE_TYPES
from t2i.core.seed import Streams
from t2i.data.caption.written import of_shards
from t2i.data.framing import CropPolicy
from t2i.data.scan import scan
from t2i.data.source import (
    HEAD,
    MAX_TEXT,
    RAGGED,
    BadSample,
    Sample,
    Tally,
    clean,
    decode,
    kinds_of,
    lines_of,
    pick_caption,
    states_of,
    text_of,
)
from t2i.data.tars import RESERVED, TEXT_TYPES, Members, index_tar

MAX_MEMBER = 64 * 2**20
"""Bytes; larger members are refused before they are read."""

MAX_NAMES = 100_000
"""Names that braces may stand for."""
MAX_BRACES = 100
"""In one name."""

_MAX_OPEN = 256


class ShardSource:
    """Samples of webdataset tars, in the order of the tars.

    A member `key.jpg`, or of another of `IMAGE_TYPES`, is the picture and `key.txt` its captions, one per line.
    `key.json` may hold `caption` or `captions: {"short": …, "descriptive": …}` (a sentence or a list of them by kind).
    `key.cls` becomes `label` (int), `key.npy` and `key.NAME.npy` become tensors `npy` and `NAME`.

    Args:
        src: a tar, a folder of them at any depth, a glob, or names in braces such as `shards/{00000..00099}.tar`.
        size: short side after resizing, pixels.
        crop: side of a random window of that picture, or None for its centre square.
        captions: weights by kind, see `pick_caption`; lines of `.txt` are of the kind `text`.
        needs: what a sample must have: `image`, `caption`, or arrays by name, such as `z` of `key.z.npy`. Pictures are
            read only if they are needed; a caption that is not needed may be missing, and is empty then.
        left_out: what lies beside the tars and is not used.
        policy, channels: see `decode`.
        recaptions: folder of captions that `t2i caption` wrote; None for those beside the tars, if there are some.

    Raises:
        UsageError: a compressed tar or a `pipe:` address.
        DataError: no tar found, or nothing that is needed in any of them.
    """

    def __init__(
        self,
        src: str,
        size: int,
        crop: int | None = None,
        captions: Mapping[str, float] | None = None,
        needs: Sequence[str] = ("image", "caption"),
        left_out: Tally | None = None,
        policy: CropPolicy = "center",
        channels: int = 3,
        recaptions: str | None = None,
    ) -> None:
        self.size, self.crop, self.captions, self.needs = size, crop, captions or {}, tuple(needs)
        self.policy, self.channels = policy, channels
        self.tars, self.left_out = expand(src), left_out or Tally()
        self.keys: list[str] = []
        self._samples: list[tuple[int, Members]] = []  # (tar, where its members lie)
        self._open: dict[int, int] = {}
        self._shapes: dict[str, torch.Size] = {}
        arrays = {f"{name}.npy" for name in needs if name not in RESERVED}
        indices = [index_tar(path) for path in self.tars]
        if "label" in needs and any("cls" in members for index in indices for members in index.samples.values()):
            arrays.add("cls")
        for number, index in enumerate(indices):
            self.left_out.merge(index.left_out)
            for key, members in index.samples.items():
                lacking = sorted(arrays - members.keys())
                if "image" in needs and not any(kind in members for kind in IMAGE_TYPES):
                    self.left_out.add("samples without a picture", key)
                elif lacking:
                    self.left_out.add(f"samples without {lacking[0]}", key)
                else:
                    self.keys.append(key)
                    self._samples.append((number, members))
        if not self.keys:
            wanted = " with ".join([*(["picture"] if "image" in needs else []), *sorted(arrays)]) or "sample"
            beside = f"; left out: {self.left_out}" if self.left_out.counts else ""
            raise DataError(f"no {wanted} in the {len(self.tars)} tars of {src}{beside}")
        self.written = of_shards(self.tars, self.tar_of, self.keys, recaptions)

    def __len__(self) -> int:
        return len(self._samples)

    def __str__(self) -> str:
        """What is used and what is not, in one line."""
        used = f"{len(self):,} samples from {len(self.tars):,} tar{'s' * (len(self.tars) != 1)}"
        used += f", {self.written}" if self.written is not None else ""
        return used + (f"; left out: {self.left_out}" if self.left_out.counts else "")

    def head(self, index: int) -> bytes:
        """The first bytes of a picture; see `Source`."""
        tar, members = self._samples[index]
        picture = _picture(members)
        offset, size = members[picture]
        return self._read(tar, {picture: (offset, min(size, HEAD))}, picture)

    @property
    def tar_of(self) -> list[int]:
        """Which of `tars` each sample lies in."""
        return [tar for tar, _ in self._samples]

    def raw(self, index: int) -> tuple[bytes, dict[str, list[str]]]:
        """A picture's file, and its captions by kind, as many of them as can be read; or BadSample."""
        tar, members = self._samples[index]
        captions: dict[str, list[str]] = {}
        for kind in ("txt", "json"):
            with suppress(BadSample, ValueError, RecursionError):
                captions |= self._captions(tar, members, kind) if kind in members else {}
        return self._read(tar, members, _picture(members)), captions

    def load(self, index: int, rng: Streams) -> Sample:
        """Sample `index`; see `Source`."""
        tar, members = self._samples[index]
        sample: Sample = {"key": self.keys[index]}
        captions: dict[str, list[str]] = {}
        for kind in members:
            if kind in IMAGE_TYPES:
                continue
            try:
                if kind == "txt":
                    captions["text"] = captions.get("text", []) + self._captions(tar, members, kind)["text"]
                elif kind == "json":
                    captions |= self._captions(tar, members, kind)
                elif kind == "cls":
                    sample["label"] = _label(self._read(tar, members, kind))
                else:
                    sample[kind.removesuffix(".npy")] = array = _array(self._read(tar, members, kind))
                    usual = self._usual_shape(kind)
                    if array.shape != usual and kind.removesuffix(".npy") not in RAGGED:
                        raise ValueError(f"shape {tuple(array.shape)}, of others {tuple(usual)}")
            except BadSample:
                raise
            except Exception as error:  # whatever a damaged member provokes in its parser costs one sample
                if lacks_memory(error):
                    raise
                raise BadSample(f"unreadable {kind}", f"{self.tars[tar]}: {sample['key']}: {error}") from None
        if "caption" not in self.needs and not any(captions.values()):
            captions = {"text": [""]}
        data = self._read(tar, members, _picture(members)) if "image" in self.needs else None
        if self.written is not None:
            captions = self.written.joined(index, captions, data)
        sample["caption"] = pick_caption(captions, self.captions, rng)
        if "captions" in self.needs:
            sample["captions"] = captions
        if "states" in sample:
            sample |= states_of(sample, captions)
        sample |= kinds_of(captions, self.needs, rng)
        if data is not None:
            sample |= decode(data, self.size, self.crop, rng, self.policy, self.channels)
        return sample

    def _captions(self, tar: int, members: Members, kind: str) -> dict[str, list[str]]:
        """Captions by kind in a sample's `txt` or `json`."""
        data = self._read(tar, members, kind)
        if kind == "txt":
            return {"text": lines_of(text_of(data))}
        return _json_captions(json.loads(data), "txt" in members)

    def _usual_shape(self, kind: str) -> torch.Size:
        """What most of the first whole arrays of a name have, so that one of another shape costs no more than its
        sample; there is one."""
        if kind not in self._shapes:
            first = Counter(itertools.islice(self._shapes_of(kind), 16))
            self._shapes[kind] = first.most_common(1)[0][0]
        return self._shapes[kind]

    def _shapes_of(self, kind: str) -> Iterator[torch.Size]:
        for tar, members in self._samples:
            if kind in members:
                try:
                    yield _array(self._read(tar, members, kind)).shape
                except Exception as error:  # whatever is damaged is told where it is drawn
                    if lacks_memory(error):
                        raise

    def _read(self, tar: int, members: Mapping[str, tuple[int, int]], kind: str) -> bytes:
        offset, size = members[kind]
        if size > (MAX_TEXT if kind in TEXT_TYPES else MAX_MEMBER):
            raise BadSample("member too large", f"{self.tars[tar]}: {kind} of {size} bytes")
        try:
            if tar not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[tar] = os.open(self.tars[tar], os.O_RDONLY)
            data = os.pread(self._open[tar], size, offset)
        except OSError as error:
            raise BadSample("unreadable file", f"{self.tars[tar]}: {error.strerror}") from None
        if len(data) != size:
            raise BadSample("truncated shard", self.tars[tar])
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # file descriptors stay in their process

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)


def _picture(members: Members) -> str:
    """The type of a sample's picture."""
    return next(kind for kind in IMAGE_TYPES if kind in members)


def expand(src: str) -> list[str]:
    """File names of a folder, a plain path, a brace expression or a glob, in order."""
    if src.startswith("pipe:") or "://" in src:
        raise UsageError(f"shards are read from files, got {quoted(src)}")
    if os.path.isdir(src):
        names = [os.path.join(src, name) for name in scan(src).tars]
    elif os.path.exists(src):
        names = [src]
    else:
        names = [n for name in _braces(src) for n in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    if not names:
        raise DataError(f"no file matches {src}")
    for name in names:
        if not name.lower().endswith(".tar") and (".tar" in name or os.path.exists(name)):
            raise UsageError(f"shards must be uncompressed .tar files, got {name}")
        if not os.path.isfile(name):
            raise DataError(f"{name} {'is no regular file' if os.path.exists(name) else 'does not exist'}")
    return names


def _label(data: bytes) -> int:
    if not -(2**63) <= (label := int(data)) < 2**63:
        raise ValueError("more than 64 bits")
    return label


def _array(data: bytes) -> torch.Tensor:
    """The array of an `.npy`, of at most as many numbers as follow its header, all of them finite; else ValueError."""
    file = io.BytesIO(data)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
    except MemoryError:  # so Python's parser says that a header, which is short, is nested too deeply
        raise ValueError("a header that is no array's") from None
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype}, shape {shape}")
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell()).reshape(shape, order="F" if fortran else "C")
    tensor = torch.from_numpy(array.copy())
    if not tensor.isfinite().all():
        raise ValueError("NaN or infinity")
    return tensor


def _json_captions(content: Any, has_text: bool) -> dict[str, list[str]]:
    """Captions by kind; a plain `caption` counts only where no `.txt` repeats it, as img2dataset writes both."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    kinds = content.get("captions")
    if isinstance(kinds, dict):
        return {str(kind): _sentences(value) for kind, value in kinds.items()}
    plain = kinds if kinds is not None else content.get("caption")
    return {} if has_text or plain is None else {"text": _sentences(plain)}


def _sentences(value: Any) -> list[str]:
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    return [clean(v) for v in values if isinstance(v, str)]


def _braces(text: str) -> list[str]:
    """`a{0..2}` → a0 a1 a2 (leading zeros kept), `{x,y}` → x y; UsageError beyond `MAX_NAMES` and `MAX_BRACES`."""
    if text.count("{") > MAX_BRACES:
        raise UsageError(f"{shown(text, 60)} has {text.count('{'):,} braces, at most {MAX_BRACES} are read")
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    inside = match.group(1)
    span = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inside)
    rest = _braces(text[match.end() :])
    count = (int(span[2]) - int(span[1]) + 1 if span else inside.count(",") + 1) * len(rest)
    if count > MAX_NAMES:
        raise UsageError(f"{shown(text, 60)} stands for {count:,} names, at most {MAX_NAMES:,} are read")
    if span:
        first, last = span.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        options = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    else:
        options = inside.split(",")
    return [text[: match.start()] + option + end for option in options for end in rest]
