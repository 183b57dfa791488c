"""What a file of weights is, told from its first bytes and never from its name."""

from pathlib import Path
from typing import Literal

from t2i.core.errors import DataError
from t2i.core.reading import open_regular

Kind = Literal["safetensors", "zip", "pickle"]
"""Formats of weights: torch's is a zip archive, and was a bare pickle before 2020."""
_LONGEST_HEADER = 10**8  # bytes, as safetensors itself has it
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_OTHERS = {b"\x89HDF": "HDF5", b"\x93NUMPY": "NumPy", b"GGUF": "GGUF", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}


def weights_format(path: Path) -> Kind:
    """The format of a file of weights.

    Raises DataError for anything else, saying what it is and what to do: a pointer of git-lfs, a web page, an archive,
    text, an empty file.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file of weights")
    with open_regular(path) as file:
        first = file.read(512)
    length, text = int.from_bytes(first[:8], "little"), first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if len(first) > 8 and first[8:9] == b"{" and length <= _LONGEST_HEADER:
        return "safetensors"
    if first.startswith(b"PK\x03\x04"):
        return "zip"
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    raise DataError(f"{path} {_instead(first, text)}")


def _instead(first: bytes, text: bytes) -> str:
    """What a file is that holds no weights."""
    if not first:
        return "is empty: download it again"
    if first.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of git-lfs and not the weights: run `git lfs pull` in that clone, or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page and not the weights, maybe one to log in or of an error: download the file itself"
    if packed := next((name for start, name in _PACKED.items() if first.startswith(start)), None):
        return f"is packed with {packed}: unpack it first"
    if other := next((name for start, name in _OTHERS.items() if first.startswith(start)), None):
        return f"is a {other} file, and no weights of safetensors or torch"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in first):
        return f"is text and not weights; it begins with {first[:40].decode(errors='replace')!r}"
    return "is not a file of weights, or damaged"
