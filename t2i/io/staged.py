"""Folders whose files are replaced together: by those of one save, or not at all."""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i.core.errors import T2IError
from t2i.core.reading import clear_errors
from t2i.io.files import temporary_name, writable


@contextmanager
def staged(folder: Path, mark: str) -> Iterator[Path]:
    """A temporary folder whose files come to `folder` when the context ends well; nothing there changes before.

    `mark` is the file without which a folder is not opened. It goes first and comes last, so that a process that is
    killed in between leaves a folder that is refused, never files of two saves side by side. Weights of an earlier save
    go from every folder that gets new ones; other files stay.
    """
    temporary = temporary_name(writable(folder) / mark)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield writable(temporary)
        with clear_errors(folder):
            _move(temporary, folder, mark)
    except T2IError as error:
        raise type(error)(str(error).replace(str(temporary), str(folder))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, folder: Path, mark: str) -> None:
    moved = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and path != source / mark]
    parents = {path.parent for path in moved}
    for parent in parents:  # what may need room comes before anything old goes
        (folder / parent).mkdir(parents=True, exist_ok=True)
    (folder / mark).unlink(missing_ok=True)
    for path in moved:
        os.replace(source / path, folder / path)
    for parent in parents:
        remove_outdated(folder / parent, "model", [path.name for path in moved if path.parent == parent])
    os.replace(source / mark, folder / mark)


def remove_outdated(folder: Path, name: str, keep: Collection[str]) -> None:
    """Remove the weights called `name` of an earlier save: `name.safetensors`, its shards and their index, save those
    to keep."""
    index = folder / f"{name}.safetensors.index.json"
    shard = re.compile(re.escape(name) + r"(-\d+-of-\d+(-[0-9a-f]+)?)?\.safetensors")
    for old in (*folder.glob(f"{name}*.safetensors"), index):
        if (old == index or shard.fullmatch(old.name)) and old.name not in keep:
            old.unlink(missing_ok=True)
