"""A folder of pictures with captions beside them: `cats/a.jpg` and `cats/a.txt`, at any depth.

Several lines in a `.txt` are several captions, one of which is drawn each time; an empty file means no caption. Where
every picture lies in a folder of its class, as in ImageNet's training set, its label is the place of that folder's name
among their sorted names.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from t2i.core.errors import DataError, shown
from t2i.core.paths import IMAGE_TYPES
from t2i.core.seed import Streams
from t2i.data.caption.written import of_folder
from t2i.data.framing import CropPolicy
from t2i.data.scan import Scan, scan
from t2i.data.source import (
    HEAD,
    MAX_TEXT,
    BadSample,
    Sample,
    decode,
    kinds_of,
    lines_of,
    pick_caption,
    read_file,
    text_of,
)
from t2i.io.decode import MAX_BYTES


class FolderSource:
    """Pictures of a folder, sorted by path; `t2i.data.scan` says which.

    Args:
        root: the folder, searched recursively.
        size: short side after resizing, pixels.
        crop: side of a random window of that picture, or None for its centre square.
        captions: weights by kind, see `pick_caption`; `.txt` files are of the kind `text`.
        needs: what a sample must have, `image` or `caption` or both; a caption that is not needed may be missing, and
            is empty then, and a picture that is not needed is not read.
        found: what `scan` has found there, if it has been asked.
        policy, channels: see `decode`.
        recaptions: folder of captions that `t2i caption` wrote; None for this one, if it holds some.

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
        found: Scan | None = None,
        policy: CropPolicy = "center",
        channels: int = 3,
        recaptions: str | None = None,
    ):
        self.root, self.size, self.crop, self.captions = Path(root), size, crop, captions or {}
        self.policy, self.channels = policy, channels
        self.captioned, self.needs = "caption" in needs, needs
        if not self.root.is_dir():
            raise DataError(f"{root} is not a folder")
        self.found = found or scan(root)
        self.files, left_out = self.found.pictures, self.found.left_out
        beside = f"; left out: {left_out}" if left_out.counts else ""
        if not self.files:
            raise DataError(f"{root} holds no pictures ({', '.join(IMAGE_TYPES)}){beside}")
        self.keys = [os.path.splitext(file)[0] for file in self.files]
        self.written = of_folder(self.root, self.keys, recaptions)
        if self.captioned and not self.found.captions and self.written is None:
            expected = f"{shown(Path(self.files[0]).stem, 60)}.txt and so on"
            raise DataError(f"{root} holds {len(self.files)} pictures but no captions: expected {expected}{beside}")
        tops = {file.rpartition(os.sep)[0].partition(os.sep)[0] for file in self.files}
        self.classes = tuple(sorted(tops)) if "" not in tops else ()

    def __len__(self) -> int:
        return len(self.files)

    def __str__(self) -> str:
        """What is used and what is not, in one line."""
        captions, folders, left_out = self.found.captions, self.found.num_folders, self.found.left_out
        twins = [key for key, count in Counter(self.keys).items() if count > 1]
        parts = [f"{len(self.files):,} pictures from {folders:,} folder{'s' * (folders != 1)}"]
        if captions or self.captioned:
            parts.append(f"{len(captions):,} with captions")
        if twins:
            parts.append(f"{len(twins):,} of one name but for its end (such as {shown(twins[0], 60)})")
        if self.written is not None:
            parts.append(str(self.written))
        return ", ".join(parts) + (f"; left out: {left_out}" if left_out.counts else "")

    def head(self, index: int) -> bytes:
        """The first bytes of a picture; see `Source`."""
        return read_file(self.root / self.files[index], MAX_BYTES, HEAD)

    def raw(self, index: int) -> tuple[bytes, dict[str, list[str]]]:
        """A picture's file, and its captions by kind, none where they cannot be read; or BadSample."""
        captions: dict[str, list[str]] = {}
        with suppress(BadSample):
            captions = self._captions(index)
        return read_file(self.root / self.files[index], MAX_BYTES), captions

    def load(self, index: int, rng: Streams) -> Sample:
        """Sample `index`; see `Source`."""
        file = self.files[index]
        pictured = "image" in self.needs
        if self.written is None:
            captions, data = self._captions(index), read_file(self.root / file, MAX_BYTES) if pictured else b""
        else:
            data, captions = self.raw(index)
            captions = self.written.joined(index, captions, data)
        sample: Sample = {"caption": pick_caption(captions, self.captions, rng), "key": self.keys[index]}
        sample |= kinds_of(captions, self.needs, rng)
        if "captions" in self.needs:
            sample["captions"] = captions
        if pictured:
            sample |= decode(data, self.size, self.crop, rng, self.policy, self.channels)
        if self.classes:
            sample["label"] = self.classes.index(file.partition(os.sep)[0])
        return sample

    def _captions(self, index: int) -> dict[str, list[str]]:
        """Those of the `.txt` beside a picture."""
        beside = self.found.captions.get(self.files[index])
        if beside is None:
            if self.captioned:
                raise BadSample("no caption", f"{self.root / self.keys[index]}.txt does not exist")
            return {"text": [""]}
        try:
            return {"text": lines_of(text_of(read_file(self.root / beside, MAX_TEXT)))}
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8", f"{self.root}/{beside}") from None
