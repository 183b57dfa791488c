"""Tensors of a TorchScript file by the names of its modules; nothing of the program in it is run.

Such a file is a zip archive: `data.pkl`, a pickle of the modules, which here become plain dictionaries, and `data/N`,
the numbers of one storage each. The code that lies beside them is not read.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from t2i.core.errors import DataError, lacks_memory
from t2i.core.reading import open_regular

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CHUNK = 2**20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_program(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a program, by dotted names.

    Raises DataError for a file that is damaged or truncated, or whose pickle asks for more than tensors, modules and
    plain values.
    """
    try:
        with ZipFile(path) as archive:
            return dict(_named(_Modules(archive).load(), ""))
    except Exception as error:  # whatever bytes that are no program provoke in the readers of zips and pickles
        if lacks_memory(error):
            raise
        reason = f": {error}" if isinstance(error, pickle.UnpicklingError) else ""
        raise DataError(f"{path}: not a program (TorchScript) of tensors, or damaged or truncated{reason}") from None


class _Module:
    """A module of the program: what it holds by name, and none of its methods."""

    def __setstate__(self, parts: dict[str, Any]) -> None:
        self.parts = dict(parts)


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors in a module and in those within, each under the name by which it is reached first."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Module):
        for key, part in vars(value).get("parts", {}).items():
            yield from _named(part, f"{name}.{key}" if name else str(key))


class _Modules(pickle.Unpickler):
    """The pickle of a program, of which every name outside this file is refused."""

    def __init__(self, archive: ZipFile) -> None:
        self.archive = archive
        (name,) = (n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl"))
        self.root = name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}
        super().__init__(BytesIO(self._bytes("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        plain: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): dict,
            ("torch", "device"): str,
        }
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle":
            return _first  # build_intlist, restore_type_tag …: a value, and of which type it was
        if (module, name) not in plain:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return plain[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it asks for a {kind}")
        if key not in self.storages:
            data = bytearray(self._bytes(f"data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) != count or self.storages[key].dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} is not {count} numbers of {dtype}")
        return self.storages[key]

    def _bytes(self, name: str) -> bytes:
        """A member, which torch never packs: none unpacks to more than the file is."""
        member = self.archive.getinfo(self.root + name)
        if member.compress_type != ZIP_STORED:
            raise pickle.UnpicklingError(f"{member.filename} is packed")
        return self.archive.read(member)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """A tensor of its own memory; ValueError for one that reaches beyond its storage."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or prod(size) > len(storage) or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def _first(value: Any, *rest: Any) -> Any:
    return value
