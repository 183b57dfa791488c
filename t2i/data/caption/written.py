"""What captioners wrote of the pictures of a source, read beside their own captions.

n samples of a source
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i.core.errors import DataError
from t2i.data.caption.captioner import KINDS
from t2i.data.caption.store import SUFFIX, hash_of, names_of, num_parts, part_of, plain, read_table
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
            self.columns.append(of)
        self.counts = {
            kind: sum(c[kind][int(r)].is_valid for c, r in self._rows()) for kind in KINDS
        }  # of samples with such a caption

    def __len__(self) -> int:
        """Samples that have a row with a caption."""
        return int((self.row >= 0).sum())

    def __str__(self) -> str:
        """How many samples have written captions, in a few words."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        lacking = len(self.row) - len(self)
        return f"captions of {self.where}: {kinds}" + (f"; {lacking:,} pictures have only their own" * (lacking > 0))

    def joined(self, index: int, own: Captions, data: bytes | None) -> Captions:
        """A sample's captions by kind: its own and those written. One without a row, or whose file `data` has changed,
        has its own as `alt`; where the picture is not read, `data` is None and only its key counts."""
        captions = {"alt": own["text"], **own} if own.get("text") else dict(own)
        if self.row[index] < 0:
            return captions
        columns, row = self.columns[self.file[index]], int(self.row[index])
        if data is not None and hash_of(data) != columns["hash"][row].as_py():
            once(f"{self.where}: pictures have changed since they were captioned, these have only their own captions")
            return captions
        texts = {kind: columns[kind][row].as_py() for kind in _READ}
        return own | {kind: text.split("\n") for kind, text in texts.items() if text}

    def _rows(self) -> Any:
        return ((self.columns[f], r) for f, r in zip(self.file, self.row, strict=True) if r >= 0)


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
    """The captions of tars, as `of_folder`; beside each where none are named."""
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
