"""Webdataset shards, read with our own index: `00000.tar` holding `000000000.jpg`, `.txt`, `.json`.

Members are found once per tar from their headers and then read at random with `pread`; nothing is extracted and nothing
is ever unpickled. Only the types below are looked at, whatever else a tar may hold.
"""

import functools
import glob
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.data.scan import scan
from t2i.data.source import IMAGE_TYPES, BadSample, Sample, Tally, decode, lines_of, pick_caption

log = logging.getLogger(__name__)

MAX_MEMBER = 64 * 2**20
"""Bytes; larger members are refused before they are read."""

_OTHER_TYPES = ("txt", "json", "cls", "npy")
_NO_ARRAYS = ("image", "caption", "label", "key", "seed")
_MAX_OPEN = 256


class ShardSource:
    """Samples of webdataset tars, in the order of the tars.

    Members `key.jpg|jpeg|png|webp` are the picture and `key.txt` its captions, one per line. `key.json` may hold
    `caption` or `captions: {"short": …, "descriptive": …}` (a sentence or a list of them by kind). `key.cls` becomes
    `label` (int), `key.npy` and `key.NAME.npy` become tensors `npy` and `NAME`.

    Args:
        src: a tar, a folder of them at any depth, a glob, or names in braces such as `shards/{00000..00099}.tar`.
        size: short side after resizing, pixels.
        crop: side of a random window of that picture, or None for its centre square.
        captions: weights by kind, see `pick_caption`; lines of `.txt` are of the kind `text`.
        needs: what a sample must have: `image`, `caption`, or arrays by name, such as `z` of `key.z.npy`. Pictures are
            read only if they are needed; a caption that is not needed may be missing, and is empty then.
        left_out: what lies beside the tars and is not used.

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
    ) -> None:
        self.size, self.crop, self.captions, self.needs = size, crop, captions or {}, tuple(needs)
        arrays = {f"{name}.npy" for name in needs if name not in _NO_ARRAYS}
        self.tars, self.left_out = expand(src), left_out or Tally()
        self.keys: list[str] = []
        self._samples: list[tuple[int, dict[str, tuple[int, int]]]] = []  # (tar, {type: (offset, bytes)})
        self._open: dict[int, int] = {}
        for number, path in enumerate(self.tars):
            for key, members in index_tar(path).items():
                pictured = "image" not in needs or any(kind in members for kind in IMAGE_TYPES)
                if pictured and arrays <= members.keys():
                    self.keys.append(key)
                    self._samples.append((number, members))
        if not self.keys:
            wanted = " with ".join([*(["picture"] if "image" in needs else []), *sorted(arrays)]) or "sample"
            raise DataError(f"no {wanted} in the {len(self.tars)} tars of {src}")

    def __len__(self) -> int:
        return len(self._samples)

    def __str__(self) -> str:
        """What is used and what is not, in one line."""
        used = f"{len(self):,} samples from {len(self.tars):,} tar{'s' * (len(self.tars) != 1)}"
        return used + (f"; left out: {self.left_out}" if self.left_out.counts else "")

    def load(self, index: int, rng: Streams) -> Sample:
        """Sample `index`; see `Source`."""
        tar, members = self._samples[index]
        sample: Sample = {"key": self.keys[index]}
        captions: dict[str, list[str]] = {}
        for kind in members:
            if kind in IMAGE_TYPES:
                continue
            data = self._read(tar, members, kind)
            try:
                if kind == "txt":
                    captions.setdefault("text", []).extend(lines_of(data.decode()))
                elif kind == "json":
                    captions.update(_json_captions(json.loads(data), "txt" in members))
                elif kind == "cls":
                    sample["label"] = int(data)
                else:
                    array = np.load(io.BytesIO(data), allow_pickle=False)
                    sample[kind.removesuffix(".npy")] = torch.from_numpy(array)
            except Exception as error:  # whatever a damaged member provokes in its parser costs one sample
                raise BadSample(f"unreadable {kind}", f"{self.tars[tar]}: {sample['key']}: {error}") from None
        if "caption" not in self.needs and not any(captions.values()):
            captions = {"text": [""]}
        sample["caption"] = pick_caption(captions, self.captions, rng)
        if "image" in self.needs:
            picture = next(kind for kind in IMAGE_TYPES if kind in members)
            sample |= decode(self._read(tar, members, picture), self.size, self.crop, rng)
        return sample

    def _read(self, tar: int, members: Mapping[str, tuple[int, int]], kind: str) -> bytes:
        offset, size = members[kind]
        if size > MAX_MEMBER:
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


def expand(src: str) -> list[str]:
    """File names of a folder, a plain path, a brace expression or a glob, in order."""
    if src.startswith("pipe:") or "://" in src:
        raise UsageError(f"shards are read from files, got {src!r}")
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


def index_tar(path: str) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {type: (offset, bytes)}} of a tar, in its order; of a damaged tar, what precedes the damage."""
    stat = os.stat(path)
    return _index(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _index(path: str, length: int, _modified: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Read once per process for the training and the held-out split alike."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                kind = kind.lower()
                if member.isreg() and stem and kind.rpartition(".")[2] in (*IMAGE_TYPES, *_OTHER_TYPES):
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    key = f"{folder}/{stem}" if folder else stem
                    found.setdefault(key, {})[_member_type(kind)] = (member.offset_data, member.size)
    except PermissionError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (tarfile.TarError, OSError, ValueError) as error:
        log.warning("%s is damaged (%s): using the %d samples before that", path, error, len(found))
    return found


def _member_type(kind: str) -> str:
    """`jpg` of `a.jpg`, `clip.npy` of `a.clip.npy`; a second dot matters only for arrays."""
    return kind if kind.endswith(".npy") else kind.rpartition(".")[2]


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
    return [v for v in values if isinstance(v, str)]


def _braces(text: str) -> list[str]:
    """`a{0..2}` → a0 a1 a2 (leading zeros kept), `{x,y}` → x y."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    inside = match.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        first, last = span.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        options = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    else:
        options = inside.split(",")
    return [text[: match.start()] + option + rest for option in options for rest in _braces(text[match.end() :])]
