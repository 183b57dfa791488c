"""Extractors that need no files of others: our CLIP, our reader of scenes, and the bare pixels.

B pictures · D features
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.assets import asset
from t2i.core.errors import UsageError, quoted
from t2i.measures.extractors.base import Features, Network, digest, exact, untouched, weight_files
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.reader.model import Reader, fit
from t2i.stages.registry import find_stage, load_stage

_PIXELS = 16


class _Signed:
    """Pixels in [-1, 1], as our stages take them; each resizes by its own rule."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return self.words

    def __call__(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1


class OwnClip(Network):
    """A CLIP of ours, which reads as well, see `TextExtractor`."""

    network: ClipEncoder

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """See `TextExtractor`."""
        with torch.no_grad(), exact(self.device):
            return self.network.encode_text(list(captions)).pooled.float()


def open_clip_stage(folder: Path | None, device: torch.device | str) -> OwnClip:
    """Our CLIP: a stage's folder, or the bundled one of the shapes world. Its features are its embeddings."""
    path = asset("weights", "shapes", "clip") if folder is None else find_stage(folder)
    with untouched():
        clip = load_stage(path, expect="clip")
    assert isinstance(clip, ClipEncoder)
    if clip.clip.visual is None:
        raise UsageError(f"{path}: this CLIP reads sentences only, and has no features of pictures")
    prepare = _Signed(f"bicubic, antialiased, to {clip.image_size}×{clip.image_size}")
    name = "CLIP of shapes" if folder is None else f"CLIP {path.absolute().name}"
    return OwnClip(
        name, clip, lambda x: Features(clip.encode_image(x)), prepare,
        sha256=digest(weight_files(path)), device=device, where=str(path),
    )  # fmt: skip


def open_reader(folder: Path | None, device: torch.device | str) -> Network:
    """Our reader of scenes: the means over all places of its features at 1/2, 1/4 and 1/8 of the picture."""
    path = asset("weights", "shapes-reader") if folder is None else find_stage(folder)
    with untouched():
        reader = load_stage(path, expect="reader")
    assert isinstance(reader, Reader)
    size = reader.config.image_size

    def look(x: Tensor) -> Features:
        maps = reader.feature_maps(fit(x, size))  # (B, C, h, w) each
        return Features(torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1))

    prepare = _Signed(f"area average down, or antialiased bilinear up, to {size}×{size}")
    name = "reader of shapes" if folder is None else f"reader {path.absolute().name}"
    return Network(name, reader, look, prepare, sha256=digest(weight_files(path)), device=device, where=str(path))


def open_pixels(text: str | None, device: torch.device | str) -> Network:
    """The pixels themselves in [0, 1], at 16 × 16 or another side: no measure of quality, but to try things with."""
    if text is not None and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 256):
        raise UsageError(f"pixels={text}: the side must be a whole number from 1 to 256, got {quoted(text)}")
    side = _PIXELS if text is None else int(text)

    def look(x: Tensor) -> Features:
        x = (x + 1) / 2
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        return Features(x.flatten(1))

    prepare = _Signed(f"bilinear, antialiased, to {side}×{side}")
    return Network(f"pixels {side}×{side}", nn.Identity(), look, prepare, sha256="none", device=device)
