"""Programs give their tensors, whatever else is in them, and nothing that is not a tensor or a plain value."""

import os
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch
from torch import Tensor, nn

from t2i.core.errors import DataError
from t2i.io.torchscript import read_program, sha256_of


class Part(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3).to(dtype))
        self.register_buffer("b", torch.arange(4.0)[1:3])  # a part of a storage
        self.register_buffer("empty", torch.zeros(0, 3))
        self.sizes, self.table, self.device, self.name, self.none = [1, 2], {"a": 1}, torch.device("cpu"), "x", None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.float().T


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_tensors_come_by_the_names_of_their_modules(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name, dtype in (("one", torch.float32), ("two", torch.float16), ("three", torch.bfloat16)):
        model.add_module(name, Part(dtype))
    model.three.w = nn.Parameter(torch.randn(3, 2).T)  # type: ignore[union-attr]  # columns first
    torch.jit.script(model).save(str(tmp_path / "p.pt"))
    found = read_program(tmp_path / "p.pt")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert torch.equal(found[key], value)
        assert found[key].is_contiguous()
    assert sha256_of(tmp_path / "p.pt") == sha256_of(tmp_path / "p.pt")
    assert len(sha256_of(tmp_path / "p.pt")) == 64


class Ask:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


def write(path: Path, content: bytes, kind: int = ZIP_STORED) -> Path:
    with ZipFile(path, "w", kind) as archive:
        archive.writestr("p/data.pkl", content)
        archive.writestr("p/data/0", bytes(16))
        archive.writestr("p/constants.pkl", pickle.dumps(()))
    return path


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4, key: str = "0") -> bytes:
    """The pickle of one tensor of a storage of `count` float32."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if isinstance(value, Storage) else None

    Pickler(file := BytesIO(), 2).dump(Ask(torch._utils._rebuild_tensor_v2, Storage(), offset, size, stride, False, {}))
    return file.getvalue()


def test_a_tensor_alone_has_no_name(tmp_path: Path) -> None:
    found = read_program(write(tmp_path / "p.pt", tensor(0, (2, 2), (2, 1))))
    assert torch.equal(found[""], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Ask(os.system, "touch ran")), r"it asks for (posix|nt)\.system"),
        (pickle.dumps(Ask(eval, "1")), r"it asks for (builtins|__builtin__)\.eval"),
        (pickle.dumps(Ask(torch.load, "x.pt")), r"it asks for torch\.serialization\.load"),
        (tensor(0, (5,), (1,)), "damaged or truncated"),
        (tensor(3, (2,), (1,)), "damaged or truncated"),
        (tensor(0, (10**12,), (0,)), "damaged or truncated"),
        (tensor(-1, (2,), (1,)), "damaged or truncated"),
        (tensor(0, (2,), (1,), count=5), r"storage 0 is not 5 numbers of torch\.float32"),
        (tensor(0, (2,), (1,), key="7"), "damaged or truncated"),
        (tensor(0, (2,), (1,), key="../data.pkl"), "damaged or truncated"),
        (pickle.dumps(Ask(torch._utils._rebuild_tensor_v2, "x", 0, (1,), (1,))), "damaged or truncated"),
        (b"", "damaged or truncated"),
        (b"\x80\x02}q\x00", "damaged or truncated"),
        (pickle.dumps([1])[:-2], "damaged or truncated"),
    ],
)
def test_what_is_no_tensor_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "p.pt", content)
    with pytest.raises(DataError, match=message) as told:
        read_program(path)
    assert str(told.value).startswith(f"{path}: not a program (TorchScript) of tensors, or damaged or truncated")
    assert "\n" not in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["p.pt"]


def test_packed_members_are_refused(tmp_path: Path) -> None:
    """Torch packs none of those that are read: what a file unpacks to is no more than it is."""
    with pytest.raises(DataError, match=r"p/data\.pkl is packed"):
        read_program(write(tmp_path / "p.pt", tensor(0, (2,), (1,)), ZIP_DEFLATED))
    with ZipFile(tmp_path / "none.pt", "w") as archive:
        archive.writestr("p/constants.pkl", b"")
    with pytest.raises(DataError, match=r"none\.pt: not a program"):
        read_program(tmp_path / "none.pt")
