"""A stage on disk: `config.json` beside `model.safetensors`, or beside numbered shards with an index.

Tensors keep their dtypes. Weights may be stored as int8 with scales (see `t2i.io.int8`), and are float32 when read.
Nothing is ever unpickled. Shards carry a fingerprint of the whole save, so a mixture of two saves is refused instead
of loaded.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from t2i.core.errors import DataError, quoted
from t2i.core.reading import open_regular, read_bytes
from t2i.io.files import read_json, writable, write
from t2i.io.int8 import HEADER, Int8, Stored, loaded, pack, unpack
from t2i.io.kinds import weights_format
from t2i.io.staged import remove_outdated, staged

MAX_SHARD_SIZE = 15 * 2**20
"""Bytes. Small enough for hosts and version control that refuse large files."""
_BESIDE = re.compile(r"[ -.0-\[\]-~]{1,255}")  # ASCII without / and \


def save_folder(
    folder: str | Path,
    config: dict[str, Any],
    state: Mapping[str, Stored],
    max_shard_size: int = MAX_SHARD_SIZE,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write `config` (JSON-able) and `state` to a folder, in place of an earlier save as a whole.

    Args:
        max_shard_size: bytes per file; a larger tensor gets a file of its own.
        metadata: strings put in the header of every weight file.

    Raises:
        UsageError: the folder cannot be written.
        DataError: the disk is full or failed; the files of an earlier save are still whole.
    """
    folder = writable(folder)
    path, text = folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    if path.is_file() and path.read_bytes() == text:
        return save_tensors(folder, state, max_shard_size=max_shard_size, metadata=metadata)
    with staged(folder, path.name) as temporary:
        save_tensors(temporary, state, max_shard_size=max_shard_size, metadata=metadata)
        write(temporary / path.name, text)


def load_folder(folder: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_folder` wrote: (config, state).

    Raises:
        DataError: a file is missing, unreadable, truncated or from another save; the message names it.
    """
    config, state = stored_folder(folder, device=device)
    return config, loaded(state)


def stored_folder(folder: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Stored]]:
    """`load_folder`, with weights as they are stored: `save_folder` writes the same ones again."""
    return load_config(folder), _stored_tensors(Path(folder), "model", device)


def load_shapes(folder: str | Path) -> dict[str, Tensor]:
    """The weights that `load_folder` gives, without their numbers: tensors that take no memory, by the headers of the
    files alone. Errors as there."""
    state: dict[str, Stored] = {}
    for path in _files(Path(folder), "model")[0]:
        state.update(_load_file(path, "meta")[0])
    return loaded(state)


def stored_dtype(folder: str | Path) -> str:
    """What most numbers of a stage are, such as bfloat16, by the headers of its files; int8 where weights have scales;
    nothing of a folder without such files."""
    sizes: Counter[str] = Counter()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with _opened(path, "cpu") as file:
            if HEADER in (file.metadata() or {}):
                return "int8"
            for key in file.keys():  # noqa: SIM118
                part = file.get_slice(key)
                sizes[part.get_dtype()] += math.prod(part.get_shape())
    most = max(sizes, key=lambda name: sizes[name], default="")
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(most, most)


def load_config(folder: str | Path) -> dict[str, Any]:
    """Only the `config.json` of a folder."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise DataError(f"{path} must hold a JSON object, got a {type(config).__name__}")
    return config


def save_tensors(
    folder: Path,
    state: Mapping[str, Stored],
    name: str = "model",
    max_shard_size: int = MAX_SHARD_SIZE,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write `name.safetensors`, or `name-00001-of-00003-SAVE.safetensors` … with `name.safetensors.index.json`.

    SAVE is a fingerprint of the weights, so that the shards of an earlier save stay until the index points to new ones.
    """
    shards = _shards(_plain(state), max_shard_size)
    files = [f"{name}.safetensors"]
    header = {"format": "pt", **(metadata or {})}
    if len(shards) > 1:
        header["save"] = _fingerprint(shards)
        last = f"of-{len(shards):05d}-{header['save']}.safetensors"
        files = [f"{name}-{i + 1:05d}-{last}" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write(folder / file, _encode(shard, header))
    index = folder / f"{name}.safetensors.index.json"
    if len(shards) > 1:
        total = sum(_size(t) for shard in shards for t in shard.values())
        where = {key: file for file, shard in zip(files, shards, strict=True) for key in pack(shard)[0]}
        content = {"metadata": {"total_size": total, "save": header["save"]}, "weight_map": where}
        write(index, json.dumps(content, indent=2).encode() + b"\n")
    remove_outdated(folder, name, [*files, index.name] if len(shards) > 1 else files)


def load_tensors(folder: str | Path, name: str = "model", device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read what `save_tensors` wrote."""
    return loaded(_stored_tensors(Path(folder), name, device))


def lazy_tensors(folder: str | Path, name: str = "model") -> Mapping[str, Tensor]:
    """What `load_tensors` gives of numbers without scales, each read from its file when it is asked for."""
    return _Lazy(Path(folder), name)


class _Lazy(Mapping[str, Tensor]):
    """Tensors by name, in files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.where: dict[str, Any] = {}  # open files: their headers are read once
        for path in _files(folder, name)[0]:
            with _opened(path, "cpu") as file:
                self.where |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self.where[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """How given weights differ from those that a model expects, such as `lacks 'out.bias'`; None if they fit."""
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [k for k in sorted(expected.keys() & given.keys()) if expected[k].shape != given[k].shape]
    for problem, keys in (("lacks", missing), ("has the unknown", extra), ("has another shape of", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            return f"{problem} {', '.join(map(repr, keys[:3]))}{more}"
    return None


def stage_folders(folder: str | Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """Where the stages of a `model_index.json` in `folder` lie, by place: entries are [library, kind], in a sub-folder
    of their place's name, or [library, kind, path], from `folder` and maybe out of it (`../shapes/clip`), so that two
    models can share a stage.

    Raises DataError for an entry that is none of these, and for a path that is absolute, no text, or leads nowhere.
    """
    folder, found = Path(folder), {}
    path = folder / "model_index.json"
    for place, entry in index.items():
        texts = isinstance(entry, list) and len(entry) > 1 and all(isinstance(part, str) for part in entry[:2])
        if "_t2i_version" in index and not place.startswith("_") and place != "settings" and not texts:
            raise DataError(f"{path}: {place} must be [library, kind] or [library, kind, path], got {quoted(entry)}")
        if not isinstance(entry, list):
            continue
        where = entry[2] if len(entry) == 3 else place
        if len(entry) > 3 or not isinstance(where, str) or Path(where).is_absolute():
            raise DataError(f"{path}: {place} lies at {entry[2:]}, which is no relative path")
        found[place] = folder.absolute() / where  # no relative path, which could lead to a bundled stage
        if len(entry) == 3 and not os.path.isdir(found[place]):  # Path.is_dir raises for names that are too long
            beside = "models that share stages stay beside each other"
            raise DataError(f"{path}: {place} lies in {where}, which is not there; {beside}")
    return found


def fingerprint(folders: Mapping[str, Path]) -> str:
    """16 hexadecimal digits of stages by place: of every `config.json` and weight file of each; of a file over 64 MiB,
    which would take seconds to read, of 64 pieces of 64 KiB."""
    digest = hashlib.blake2b(digest_size=8)
    for place, folder in sorted(folders.items()):
        for path in sorted(p for kind in ("config.json", "*.safetensors", "*.bin") for p in folder.glob(kind)):
            size = path.stat().st_size
            digest.update(f"{place}/{path.name}\0{size}\0".encode())
            if size <= 2**26:
                digest.update(read_bytes(path, 2**26))
                continue
            with open_regular(path) as file:
                for i in range(64):
                    file.seek((size - 2**16) * i // 63)
                    digest.update(file.read(2**16))
    return digest.hexdigest()


def shards_of(index: Path) -> dict[str, str]:
    """Name of a tensor → the file beside an index that holds it; DataError for what is no index."""
    where = _index(index)[0]
    if not where or not all(isinstance(file, str) for file in where.values()):
        raise DataError(f"{index} is not an index of shards")
    if (odd := next((file for file in where.values() if not _BESIDE.fullmatch(file)), None)) is not None:
        raise DataError(f"{index} names no file in its own folder: {quoted(odd)}")
    return where


def _index(path: Path) -> tuple[dict[str, str], Any]:
    """What an index says: files by tensor, and the fingerprint of the save, None if it has none."""
    content = read_json(path)
    try:
        return dict(content["weight_map"]), content["metadata"].get("save")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path} is not an index of shards") from None


def _files(folder: Path, name: str) -> tuple[list[Path], Path | None]:
    """The files that hold a save, and its index if they are shards."""
    whole, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole], None
    return [folder / file for file in sorted(set(shards_of(index).values()))], index


def _stored_tensors(folder: Path, name: str, device: str | torch.device) -> dict[str, Stored]:
    files, index = _files(folder, name)
    if index is None:
        return _load_file(files[0], device)[0]
    where, expected = _index(index)
    state: dict[str, Stored] = {}
    found: set[str] = set()
    for file in files:
        shard, header, keys = _load_file(file, device)
        if expected != header.get("save"):
            raise DataError(f"{file} belongs to another save than {index.name}: save or download it again")
        state.update(shard)
        found |= keys
    if missing := set(where) - found:
        raise DataError(f"{folder}: {len(missing)} tensors of {index.name} are in no shard, such as {min(missing)!r}")
    return state


def _load_file(path: Path, device: str | torch.device) -> tuple[dict[str, Stored], dict[str, str], set[str]]:
    """Weights, metadata and the names of all tensors, scales among them; of the device "meta" their shapes alone."""
    meta = str(device) == "meta"
    with _opened(path, "cpu" if meta else device) as file:
        header = file.metadata() or {}
        tensors = {key: _shape(file, key) if meta else file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        return unpack(tensors, header), header, set(tensors)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _shape(file: Any, key: str) -> Tensor:
    """A tensor of a file without its numbers."""
    part = file.get_slice(key)
    shape = part.get_shape()
    return torch.empty(shape, dtype=(part[:0] if shape else file.get_tensor(key)).dtype, device="meta")


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[Any]:
    if (kind := weights_format(path)) != "safetensors":
        raise DataError(f"{path} is a {kind} file of torch, which may hold code: t2i convert reads such files")
    try:
        yield safe_open(path, framework="pt", device=str(device))  # closed when nobody has it any more
    except SafetensorError as error:
        raise DataError(f"{path} is damaged or truncated: {error}") from None


def _plain(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()

    def alone(value: Tensor) -> Tensor:
        tensor = value.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        shared = pointer in seen or tensor.untyped_storage().nbytes() != _size(tensor)
        seen.add(pointer)
        return tensor.clone() if shared else tensor

    return {key: Int8(*map(alone, v)) if isinstance(v, Int8) else alone(v) for key, v in state.items()}


def _shards(state: dict[str, Stored], max_size: int) -> list[dict[str, Stored]]:
    """Weights in their order, none apart from its scale."""
    shards: list[dict[str, Stored]] = [{}]
    filled = 0
    for key, tensor in state.items():
        if shards[-1] and filled + _size(tensor) > max_size:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += _size(tensor)
    return shards


def _encode(shard: dict[str, Stored], metadata: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in a fixed order, so that equal saves are equal bytes."""
    tensors, scales = pack(shard)
    data = save(tensors)
    start = 8 + int.from_bytes(data[:8], "little")
    about = {"__metadata__": metadata | scales, **json.loads(data[8:start])}
    header = json.dumps(about, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(data)[start:]))


def _fingerprint(shards: list[dict[str, Stored]]) -> str:
    """Of names and numbers where they lie: weights are packed into a file once."""
    digest = hashlib.blake2b(digest_size=8)
    for shard in shards:
        for key, tensor in pack(shard)[0].items():
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(stored: Stored) -> int:
    if isinstance(stored, Int8):
        return sum(map(_size, stored))
    return stored.numel() * stored.element_size()
