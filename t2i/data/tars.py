"""What a tar holds: its samples and where their members lie, found from the headers alone; nothing is unpacked.

Only the types below are looked at, whatever else a tar may hold; what is not used is counted by reason.
"""

import functools
import io
import logging
import os
import tarfile
from collections.abc import Mapping
from typing import NamedTuple

from t2i.core.errors import DataError, shown
from t2i.core.paths import IMAGE_TYPES
from t2i.data.scan import passed_over
from t2i.data.source import Tally

log = logging.getLogger(__name__)

MAX_HEADER = 2**20
"""Bytes; longer names and attributes of members are refused before they are read."""
RESERVED = (
    "image", "caption", "captions", "short", "descriptive", "alt", "label", "key", "seed", "bad", "enlarged", "failed",
    "notices",
)  # fmt: skip
"""What a sample holds beside its arrays."""

TEXT_TYPES = ("txt", "json", "cls")

Place = tuple[int, int]
"""Offset and bytes of a member."""
Members = dict[str, Place]
"""The places of a sample's members by type: `png`, `txt`, `z.npy`."""


class Index(NamedTuple):
    """The samples of a tar by key, in its order, and what else it holds."""

    samples: dict[str, Members]
    left_out: Tally


def index_tar(path: str) -> Index:
    """The samples of a tar; of a damaged one, what precedes the damage. DataError for one that cannot be opened."""
    stat = os.stat(path)
    return _index(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _index(path: str, length: int, _modified: int) -> Index:
    """Read once per process for the training and the held-out split alike."""
    stems: dict[str, Members] = {}  # of every name up to its first period, what follows that
    places: dict[str, Place] = {}
    left_out = Tally()
    try:
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                place = _place(member, places, length)
                folder, _, name = member.name.rpartition("/")
                stem, _, rest = name.partition(".")
                if place is None:
                    continue
                if isinstance(place, str):
                    left_out.add(place, member.name)
                elif any(passed_over(part) for part in member.name.split("/") if part not in (".", "..")):
                    left_out.add("hidden or of the system", member.name)
                elif _slot(rest) is None:
                    left_out.add_other(member.name)
                else:
                    members = stems.setdefault(f"{folder}/{stem}" if folder else stem, {})
                    if rest in members:
                        left_out.add("replaced by a later one of the same name", member.name)
                    members[rest] = place
    except PermissionError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (tarfile.TarError, OSError, ValueError, LookupError, OverflowError, RecursionError) as error:
        log.warning("%s is damaged (%s): using the %d samples before that", shown(path, 300), error, len(stems))
    samples = {key: sample for stem, members in stems.items() for key, sample in _samples(stem, members, left_out)}
    return Index(samples, left_out)


class _Headers(io.FileIO):
    """A tar that is asked for its headers only, and has none that eats the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def _place(member: tarfile.TarInfo, places: dict[str, Place], length: int) -> Place | str | None:
    """Where the bytes of a member lie, of a hard link those of its target; why it has none, or None for folders."""
    if member.isdir():
        return None
    if member.islnk():
        return places.get(member.linkname, "linked to nothing")
    if member.issym():
        return "symbolic links"
    if not member.isreg():
        return "neither file nor folder"
    if member.sparse is not None:
        return "stored with holes (sparse)"
    if member.size < 0 or member.offset_data + member.size > length:
        raise tarfile.ReadError("unexpected end of data")
    places[member.name] = member.offset_data, member.size
    return places[member.name]


def _slot(rest: str) -> str | None:
    """What a member is for its sample: the picture, a text or an array; None for what is not read."""
    kind = rest.lower().rpartition(".")[2]
    if kind in IMAGE_TYPES:
        return "picture"
    return rest.lower() if kind == "npy" else kind if kind in TEXT_TYPES else None


def _samples(stem: str, members: Members, left_out: Tally) -> list[tuple[str, Members]]:
    """The samples of names with one stem: one, as webdataset has it, unless two members would be the same to it.

    Then names with periods are meant (`scan 2.0.png`), and what precedes the type is the key. Beside a picture whose
    type follows the stem, what is no picture with a text of its own belongs to that: `a.mask.png` to `a.png`.
    """
    if len({_slot(rest) for rest in members}) == len(members):
        return [(stem, _placed(stem, {_type(rest): rest for rest in members}, members, left_out))]
    names: dict[str, dict[str, str]] = {}  # {what follows the stem: {type: what follows, with the type}}

    def put(name: str, kind: str, rest: str) -> None:
        if rest != names.setdefault(name, {}).setdefault(kind, rest):
            left_out.add("of the same name but for capitals", f"{stem}.{rest}")

    for rest in members:
        if not rest.lower().endswith("npy"):
            put(rest.rpartition(".")[0], _type(rest), rest)
    if _pictures(names.get("", {})):
        for name, kinds in list(names.items()):
            if name and not 0 < len(_pictures(kinds)) < len(kinds):
                for rest in names.pop(name).values():
                    left_out.add("further members of a sample", f"{stem}.{rest}")
    for rest in members:
        if rest.lower().endswith("npy"):
            owner = max((name for name in names if name and rest.startswith(f"{name}.")), key=len, default="")
            put(owner, _type(rest[len(owner) :].lstrip(".")), rest)
    return [
        (f"{stem}.{name}" if name else stem, _placed(stem, kinds, members, left_out)) for name, kinds in names.items()
    ]


def _type(rest: str) -> str:
    """`jpg` of `jpg` and `x.JPG`, `clip.npy` of `clip.npy`; a second period matters only for arrays."""
    rest = rest.lower()
    return rest if rest.endswith(".npy") else rest.rpartition(".")[2]


def _pictures(kinds: Mapping[str, str]) -> list[str]:
    return [kind for kind in IMAGE_TYPES if kind in kinds]


def _placed(stem: str, kinds: Mapping[str, str], members: Members, left_out: Tally) -> Members:
    """A sample's members without second pictures and arrays of reserved names."""
    second = _pictures(kinds)[1:]
    found = {}
    for kind, rest in kinds.items():
        if kind in second:
            left_out.add("second pictures of a sample", f"{stem}.{rest}")
        elif kind.removesuffix(".npy") in RESERVED:
            left_out.add("arrays of a reserved name", f"{stem}.{rest}")
        else:
            found[kind] = members[rest]
    return found
