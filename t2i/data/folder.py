"""A folder of pictures with captions beside them: `cats/a.jpg` and `cats/a.txt`, at any depth.

Several lines in a `.txt` are several captions, one of which is drawn each time; an empty file means no caption. Where
every picture lies in a folder of its class, as in ImageNet's training set, its label is the place of that folder's name
among their sorted names.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from t2i.core.errors import DataError
from t2i.core.seed import Streams
from t2i.data.source import IMAGE_TYPES, BadSample, Sample, decode, lines_of, pick_caption


class FolderSource:
    """Pictures of a folder, sorted by path.

    Args:
        root: the folder, searched recursively; links to folders are not followed.
        size: short side after resizing, pixels.
        crop: side of a random window of that picture, or None for its centre square.
        captions: weights by kind, see `pick_caption`; `.txt` files are of the kind `text`.
        needs: what a sample must have, `image` and maybe `caption`; a caption that is not needed may be missing, and is
            empty then.

    Raises:
        DataError: no such folder, one below it that cannot be read, no pictures, or not a single caption where they
            are needed.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        crop: int | None = None,
        captions: Mapping[str, float] | None = None,
        needs: Sequence[str] = ("image", "caption"),
    ):
        self.root, self.size, self.crop, self.captions = Path(root), size, crop, captions or {}
        self.captioned = "caption" in needs
        if not self.root.is_dir():
            raise DataError(f"{root} is not a folder")
        found, texts = _scan(self.root)
        if not found:
            raise DataError(f"{root} holds no pictures ({', '.join(IMAGE_TYPES)})")
        if self.captioned and not texts:
            raise DataError(
                f"{root} holds {len(found)} pictures but no captions: expected {Path(found[0]).stem}.txt and so on"
            )
        self.files = found
        self.keys = [str(Path(file).with_suffix("")) for file in found]
        tops = [Path(file).parts[0] if len(Path(file).parts) > 1 else None for file in found]
        self.classes = tuple(sorted({top for top in tops if top is not None})) if None not in tops else ()

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, rng: Streams) -> Sample:
        """Sample `index`; see `Source`."""
        path = self.root / self.files[index]
        beside = path.with_suffix(".txt")
        try:
            data = path.read_bytes()
            text = beside.read_text("utf-8") if self.captioned or beside.exists() else ""
        except FileNotFoundError as error:
            reason = "no caption" if error.filename == str(beside) else "unreadable file"
            raise BadSample(reason, f"{error.filename} does not exist") from None
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8", str(beside)) from None
        except OSError as error:
            raise BadSample("unreadable file", f"{path}: {error.strerror}") from None
        caption = pick_caption({"text": lines_of(text)}, self.captions, rng)
        sample = {**decode(data, self.size, self.crop, rng), "caption": caption, "key": self.keys[index]}
        if self.classes:
            sample["label"] = self.classes.index(Path(self.files[index]).parts[0])
        return sample


def _scan(root: Path) -> tuple[list[str], int]:
    """Pictures below `root`, as sorted relative paths, and the number of caption files."""
    found, texts = [], 0
    for folder, _, names in os.walk(root, onerror=_refuse):
        for name in names:
            kind = name.rpartition(".")[2]
            texts += kind == "txt"
            if kind.lower() in IMAGE_TYPES and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(folder, name), root))
    return sorted(found), texts


def _refuse(error: OSError) -> None:
    """`os.walk` passes over what it cannot read, unless this is raised; so it may folders of the system's own."""
    if Path(error.filename).name.startswith((".", "lost+found")):
        return
    raise DataError(f"{error.filename}: {error.strerror}") from None
