"""Published programs (TorchScript) that tensors are taken from: the one that is known by its SHA-256, and nothing of it
is run."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from t2i.core.errors import DataError
from t2i.io.torchscript import read_program, sha256_of
from t2i.stages.consistency_decoder import convert as consistency

KNOWN: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {consistency.SHA256: consistency.of_program}
"""SHA-256 → the names of a layout for its tensors."""


def read_known(path: Path) -> dict[str, Tensor]:
    """The tensors of a known program, by the names of one of its layouts; DataError for another."""
    digest = sha256_of(path)
    if digest not in KNOWN:
        raise DataError(
            f"{path}: a program (TorchScript), and code from a file is never run; tensors are taken from OpenAI's "
            f"consistency decoder, of SHA-256 {consistency.SHA256[:12]}…, but this file's is {digest[:12]}…; "
            "OpenAI's CLIP is at openai/clip-vit-large-patch14, in transformers' format"
        )
    return KNOWN[digest](read_program(path))
