"""What a folder of a user's holds, and what of it is not used, by reason.

Hidden files, folders of the system's own and outputs of t2i are passed over. Linked folders are read once, after all
that lies in the folder itself.
"""

import os
import unicodedata
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from t2i.core.errors import DataError, shown
from t2i.core.paths import IMAGE_TYPES
from t2i.data.source import Tally

_SYSTEM = (
    "@eaDir", "@__thumb", "#recycle", "@Recycle", "__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN",
    "System Volume Information", "Thumbs.db", "desktop.ini",
)  # fmt: skip
_OUTPUTS = (
    {"run.json", "metrics.jsonl"},
    {"model_index.json"},
    {"checkpoints", "metrics.jsonl"},
    {"config.json", "model.safetensors"},
)
"""Files of which any row tells a folder that t2i has written."""


class Scan(NamedTuple):
    """What is used of a folder, as sorted paths relative to it.

    Attributes:
        captions: the caption file of a picture, where it has one.
        num_folders: that hold a picture or a tar.
        left_out: everything else that was seen; of a folder that is passed over, only itself.
    """

    pictures: list[str]
    captions: dict[str, str]
    tars: list[str]
    num_folders: int
    left_out: Tally


def scan(root: str | Path) -> Scan:
    """Look through a folder. DataError for one that cannot be read."""
    pictures: list[str] = []
    texts: list[str] = []
    tars: list[str] = []
    left_out = Tally()
    for name in _files(str(root), left_out):
        kind = os.path.splitext(name)[1].lower()
        if kind[1:] in IMAGE_TYPES:
            pictures.append(name)
        elif kind in (".txt", ".tar"):
            (texts if kind == ".txt" else tars).append(name)
        elif not name.endswith((".captions.parquet", ".captions.jsonl")):  # of t2i caption, read by their pictures
            left_out.add_other(name)
    captions = _captions(pictures, texts)
    for text in sorted(set(texts) - set(captions.values())):
        left_out.add(".txt beside no picture", text)
    num_folders = len({os.path.dirname(name) for name in pictures + tars})
    return Scan(sorted(pictures), captions, sorted(tars), num_folders, left_out)


def passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or of the system's own."""
    return name.startswith(".") or name in _SYSTEM


def _files(root: str, left_out: Tally) -> Iterator[str]:
    """Regular files below `root`, and below the folders that are linked there, but never twice nor of a folder around
    `root`."""
    above = [Path(root).resolve(), *Path(root).resolve().parents]
    seen = {_identity(folder) for folder in above[1:]}
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        path = os.path.join(root, folder) if folder else root
        if (identity := _identity(path)) in seen:
            left_out.add("linked and read already", folder)
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{shown(path, 300)}: {error.strerror}") from None
        output = _is_output(path, {entry.name for entry in entries})
        if output and folder:
            left_out.add("written by t2i", folder)
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if passed_over(entry.name):
                left_out.add("hidden or of the system", name)
            elif output and entry.name in ("samples", "checkpoints"):
                left_out.add("written by t2i", name)
            elif (kind := _kind(entry)) == "file":
                yield name
            elif kind in ("folder", "link"):
                (folders if kind == "folder" else links).append(name)
            else:
                left_out.add(kind, name)


def _kind(entry: os.DirEntry[str]) -> str:
    """`file`, `folder`, `link` to a folder, or why it is none of them."""
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        if entry.is_file():
            return "file"
    except OSError:  # links that lead to each other, or where nobody may look
        pass
    return "neither file nor folder" if os.path.exists(entry.path) else "linked to nothing"


def _identity(path: str | Path) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown(str(path), 300)}: {error.strerror}") from None
    return stat.st_dev, stat.st_ino


def _is_output(path: str, names: set[str]) -> bool:
    if "samples" in names and os.path.exists(os.path.join(path, "samples", "inputs.png")):
        return True
    return any(files <= names for files in _OUTPUTS)


def _captions(pictures: list[str], texts: list[str]) -> dict[str, str]:
    """The `.txt` of a picture's name or, if there is none, one whose name differs only in the form of its accents or in
    the case of `.txt`."""
    exact, like = set(texts), {_plain(text): text for text in sorted(texts, reverse=True)}
    found = {}
    for picture in pictures:
        text = os.path.splitext(picture)[0] + ".txt"
        beside = text if text in exact else like.get(_plain(picture))
        if beside is not None:
            found[picture] = beside
    return found


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(path)[0])
