"""What captioners wrote of the pictures of a source, read beside their own captions.

n samples of a source
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i.core.errors import DataError, UsageError
from t2i.data.caption.captioner import KINDS
from t2i.data.caption.store import SUFFIX, hash_of, names_of, num_parts, part_of, plain, read_table
from t2i.data.encoded import FACTS
from t2i.io.decode import once

Captions = dict[str, list[str]]
"""Captions by kind."""
_READ = ("alt", *KINDS)


class Written:
    """Rows of files of captions, by the place of a sample in its source.

    Args:
        files: each with the samples that belong to it.
        keys: of the n samples.
        where: what the user calls the files, for messages.

    Raises DataError for a file that is damaged.
    """

    def __init__(self, files: Mapping[Path, Sequence[int]], keys: Sequence[str], where: str) -> None:
        self.where, self.columns = where, list[dict[str, Any]]()
        self.counts = Counter[str](dict.fromkeys(KINDS, 0))  # of samples with a caption of a kind
        self.file, self.row = np.full((2, len(keys)), -1, np.int32)  # (n,) (n,)
        for path, samples in files.items():
            table = read_table(path, ("key", "hash", *_READ)).combine_chunks()
            of = {name: table.column(name) for name in table.column_names}
            rows = {key: i for i, key in enumerate(of.pop("key").to_pylist())}
            there = {kind: of[kind].is_valid().to_numpy() for kind in KINDS}
            for sample in samples:
                row = rows.get(plain(keys[sample]), -1)
                if row >= 0 and any(there[kind][row] for kind in KINDS):
                    self.file[sample], self.row[sample] = len(self.columns), row
                    self.counts.update(kind for kind in KINDS if there[kind][row])
            self.columns.append(of)

    def __len__(self) -> int:
        """Samples that have a row with a caption."""
        return int((self.row >= 0).sum())

    def __str__(self) -> str:
        """How many samples have written captions, in a few words."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        lacking = len(self.row) - len(self)
        return f"captions of {self.where}: {kinds}" + (f"; {lacking:,} pictures have only their own" * (lacking > 0))

    def joined(self, index: int, own: Captions, data: bytes | None) -> Captions:
        """A sample's captions by kind: its own, as `alt`, and those written; what it came with once is its `alt` where
        nothing lies beside it any more. One whose file `data` has changed has its own alone; where the picture is not
        read, `data` is None and only its key counts."""
        captions = {"alt": own["text"], **own} if own.get("text") else dict(own)
        if self.row[index] < 0:
            return captions
        columns, row = self.columns[self.file[index]], int(self.row[index])
        if data is not None and hash_of(data) != columns["hash"][row].as_py():
            once(f"{self.where}: pictures have changed since they were captioned, these have only their own captions")
            return captions
        texts = {kind: columns[kind][row].as_py() for kind in _READ}
        written = {kind: text.split("\n") for kind, text in texts.items() if text}
        alt = own.get("alt") or [line for line in own.get("text", ()) if line] or written.get("alt")
        return own | written | ({"alt": alt} if alt else {})

    def digest(self) -> str:
        """By which these captions are known again."""
        mark = hashlib.blake2b(digest_size=6)
        for f, row in zip(self.file.tolist(), self.row.tolist(), strict=True):
            mark.update(repr([self.columns[f][kind][row].as_py() for kind in _READ] if row >= 0 else None).encode())
        return mark.hexdigest()


def of_folder(root: Path, keys: Sequence[str], where: str | None) -> Written | None:
    """The captions of a folder of pictures, in the folder `where`, or in itself; None where there are none there.

    Raises DataError for a folder `where` that is named and holds none.
    """
    folder = root if where is None else Path(where)
    num, parts = num_parts(folder, len(keys)), dict[str, list[int]]()
    for row, key in enumerate(keys):
        parts.setdefault(part_of(key, num), []).append(row)
    return _found({folder / f"{name}{SUFFIX}": rows for name, rows in parts.items()}, keys, where, root)


def of_shards(tars: Sequence[str], tar_of: Sequence[int], keys: Sequence[str], where: str | None) -> Written | None:
    """The captions of tars, as `of_folder`; beside each where none are named. Latents keep what they were encoded with.

    Raises UsageError for a folder that is named for latents.
    """
    if cached := next((tar for tar in tars if Path(tar).with_name(FACTS).is_file()), None):
        if where is not None:
            raise UsageError(
                f"data.recaptions={where}: {Path(cached).parent} holds latents and the captions of their time; "
                f"encode again into another folder, with t2i data encode --recaptions {where}"
            )
        return None
    rows: dict[int, list[int]] = {}
    for row, tar in enumerate(tar_of):
        rows.setdefault(tar, []).append(row)
    names = names_of(tars)
    paths = {
        tar: Path(tars[tar]).with_suffix(SUFFIX) if where is None else Path(where, f"{names[tar]}{SUFFIX}")
        for tar in rows
    }
    return _found({paths[tar]: rows[tar] for tar in rows}, keys, where, tars[0])


def _found(
    files: Mapping[Path, Sequence[int]], keys: Sequence[str], where: str | None, source: str | Path
) -> Written | None:
    there = {path: rows for path, rows in files.items() if path.exists()}
    if not there and where is None:
        return None
    if not there:
        first = next(iter(files))
        raise DataError(f"data.recaptions={where} holds no captions of {source}: expected {first} and so on")
    return Written(there, keys, str(where or source))
