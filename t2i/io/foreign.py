"""Files of weights that others wrote, read without running anything in them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from t2i.core.errors import DataError, lacks_memory
from t2i.io.kinds import weights_format


def read_foreign(path: Path) -> Any:
    """What is in a file of weights of others, whatever it is called: of safetensors or of torch. Nothing in it is run.

    Raises DataError for what is missing, truncated, foreign or holds more than tensors.
    """
    kind = weights_format(path)
    if kind == "safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path} is damaged or truncated: {error}") from None
    return _read_pickle(path, kind == "zip")


def _read_pickle(path: Path, is_zip: bool) -> Any:
    if is_zip:
        _check_archive(path)
    mapped = is_zip and path.suffix != ".safetensors"  # by which torch goes, if it sees the name
    try:
        with open(path, "rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason:
            raise DataError(f"{path}: holds more than tensors, and code from a file is never run") from None
        raise DataError(f"{path}: not a file of weights, or damaged") from None
    except Exception as error:  # whatever bytes that are none of torch's provoke in its reader
        if lacks_memory(error):
            raise
        raise DataError(f"{path}: not a file of weights, or damaged or truncated") from None


def is_program(path: Path) -> bool:
    """Whether a file of weights is a program (TorchScript); DataError for what is none of either."""
    return weights_format(path) == "zip" and _has_program(_members(path))


def _members(path: Path) -> list[ZipInfo]:
    try:
        with ZipFile(path) as archive:
            return archive.infolist()
    except Exception as error:  # a damaged directory provokes all sorts
        if lacks_memory(error):
            raise
        raise DataError(f"{path}: not a file of weights, or damaged or truncated") from None


def _has_program(members: Sequence[ZipInfo]) -> bool:
    return any(member.filename.endswith("/constants.pkl") for member in members)


def _check_archive(path: Path) -> None:
    """DataError for archives that torch did not write, that hold a program, or that unpack to more than they are."""
    members = _members(path)
    if _has_program(members):
        raise DataError(
            f"{path}: a program (TorchScript), and code from a file is never run; OpenAI's CLIP is at "
            "openai/clip-vit-large-patch14, in transformers' format"
        )
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise DataError(f"{path}: a zip archive without tensors; unpack it, and give the file of weights that is in it")
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size:
        raise DataError(f"{path}: has {size:,} bytes and unpacks to {unpacked:,}; torch never packs its files")
