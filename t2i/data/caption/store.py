"""Captions on disk: a parquet file beside each shard, whole or absent, and the journal of one that is being made."""

import hashlib
import importlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from t2i.core.errors import DataError, UsageError, shown
from t2i.core.reading import clear_errors
from t2i.core.seed import mix
from t2i.data.caption.captioner import KINDS
from t2i.io.files import write

SUFFIX = ".captions.parquet"
"""`00000.tar` has `00000.captions.parquet`."""
JOURNAL = ".captions.jsonl"
BY_KIND = ("model", "revision", "settings")
TEXTS = ("key", "hash", "alt", *KINDS, *BY_KIND)
"""Columns of text: key and BLAKE2 of the picture's file; its own caption, lines of it apart, and those written; which
model, revision and settings wrote them, as JSON by kind. Beside them stand `seconds` and `error`."""
COLUMNS = (*TEXTS, "seconds", "error")
_SHARE = 1000  # pictures of a part of a folder, about
_PART = re.compile(r"pictures-\d+-of-(\d{1,6})")

Row = dict[str, Any]


def arrow(module: str = "pyarrow") -> Any:
    """A module of pyarrow; UsageError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError('captions are parquet files, for which pyarrow is needed: pip install "t2i[data]"') from None


def read_table(path: Path, columns: Sequence[str] = COLUMNS) -> Any:
    """Columns of a file as a table of pyarrow. DataError for a file that is cut short or holds something else."""
    pa, pq = arrow(), arrow("pyarrow.parquet")
    with clear_errors(path):
        try:
            found = pq.ParquetFile(path)
            _check_columns(path, found.schema_arrow, columns)
            table = found.read(columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is no whole parquet file, maybe cut short ({said}); remove it") from None
    keys = table.column("key")
    if keys.null_count or len(keys.unique()) < len(keys):
        raise DataError(f"{path} holds no captions of t2i: a key is missing, or stands in two rows")
    return table


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none where there is none; seconds that nobody noted are 0. DataError as `read_table`, and for
    a model, revision or settings that are not by kind."""
    rows: list[Row] = read_table(path).to_pylist() if path.exists() else []
    for row in rows:
        row["seconds"] = row["seconds"] or 0.0
        for column in BY_KIND:
            if not _by_kind(row[column]):
                raise DataError(f"{path}: the {column} of {shown(row['key'], 60)} is not JSON by kind")
    return rows


def _by_kind(text: str | None) -> bool:
    """Whether a text is JSON by kind, or nothing."""
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(text or "{}"), dict)
    return False


def _is_row(row: Any) -> bool:
    """Whether what a journal holds is a row: all columns and no other, each with what belongs there."""
    if not isinstance(row, dict) or row.keys() != set(COLUMNS) or row["key"] is None:
        return False
    texts = all(isinstance(row[name], str | None) for name in COLUMNS if name != "seconds")
    return texts and isinstance(row["seconds"], int | float) and all(_by_kind(row[name]) for name in BY_KIND)


def _check_columns(path: Path, schema: Any, columns: Sequence[str]) -> None:
    """DataError for columns that are missing, or hold something else than text and seconds."""
    if lacking := [name for name in columns if name not in schema.names]:
        raise DataError(f"{path} holds no captions of t2i: it has no column {', '.join(lacking)}")
    for name in columns:
        kind = str(schema.field(name).type)
        if kind not in (("double",) if name == "seconds" else ("string", "large_string")):
            raise DataError(f"{path} holds no captions of t2i: its column {name} is of {kind}")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file, whole or not at all; the same rows give the same bytes."""
    pa, pq = arrow(), arrow("pyarrow.parquet")
    types = {name: pa.string() for name in COLUMNS} | {"seconds": pa.float64()}
    table = pa.Table.from_pylist(list(rows), pa.schema(list(types.items())))
    file = io.BytesIO()
    pq.write_table(table, file)
    write(path, file.getvalue())


def names_of(tars: Sequence[str]) -> list[str]:
    """What the captions of each tar are called: its path below the folder that holds them all, without `.tar`."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(tar)) for tar in tars])
    return [os.path.splitext(os.path.relpath(os.path.abspath(tar), root))[0] for tar in tars]


def num_parts(out: Path, count: int) -> int:
    """How many parts a folder of pictures has: as many as the first time, though pictures may have come since."""
    ends = (SUFFIX, JOURNAL)  # a first run that was killed may have left journals alone
    names = [path.name.removesuffix(end) for end in ends for path in out.glob(f"pictures*{end}")]
    if "pictures" in names:
        return 1
    earlier = [int(found[1]) for name in names if (found := _PART.fullmatch(name))]
    return max(earlier) if earlier else max(1, -(-count // _SHARE))


def part_of(key: str, num: int) -> str:
    """The part of a picture, by its key alone, so that those that come later move no other."""
    return "pictures" if num == 1 else f"pictures-{mix('captions', key) % num:05d}-of-{num:05d}"


def hash_of(data: bytes) -> str:
    """By which a picture's file is known again."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def plain(text: str) -> str:
    """Text that is valid UTF-8, as names of files need not be, nor what models write."""
    return text.encode(errors="backslashreplace").decode()


class Journal:
    """What is done of a file that is not whole yet: JSON lines, each the rows of one batch, which is there or not.

    `rows` are those that an earlier process left; what it was writing when it was killed is cut off, and so is what
    follows a line of something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        self._whole = 0
        with clear_errors(path):
            data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines(keepends=True):
            batch: Any = None
            with suppress(ValueError, RecursionError):
                batch = json.loads(line) if line.endswith(b"\n") else None
            if not isinstance(batch, list) or not all(map(_is_row, batch)):
                break
            self.rows += batch
            self._whole += len(line)

    def append(self, batches: Iterable[Sequence[Row]]) -> None:
        """Add batches, and wait until they are on the disk."""
        data = b"".join(json.dumps(batch).encode() + b"\n" for batch in batches)
        with clear_errors(self.path), open(self.path, "ab") as file:
            file.truncate(self._whole)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(data)

    def remove(self) -> None:
        """Its rows stand in the whole file."""
        self.path.unlink(missing_ok=True)
