"""Weights as int8 and scales: how far a weight moves, what stays as it is, and files that say so themselves."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.core.errors import DataError
from t2i.io import weights
from t2i.io.int8 import (
    HEADER,
    SMALL,
    SMALL_MATRIX,
    Int8,
    compact,
    dequantise,
    loaded,
    num_bytes,
    pack,
    quantise,
    unpack,
)

TINY = torch.finfo(torch.float32).tiny


def channels(*exponents: float, width: int = 40) -> Tensor:
    """A matrix whose rows are about 10 ** exponent."""
    torch.manual_seed(0)
    return torch.randn(len(exponents), width) * 10.0 ** torch.tensor(exponents)[:, None]


def test_a_hand_made_channel() -> None:
    stored = quantise(torch.tensor([[127.0, -127.0, 1.4, -0.6, 0.5], [0.0, -254.0, 2.9, 3.1, 0.0]]))
    assert stored.scale.tolist() == [1, 2]
    assert stored.values.tolist() == [[127, -127, 1, -1, 0], [0, -127, 1, 2, 0]]
    assert dequantise(stored).tolist() == [[127, -127, 1, -1, 0], [0, -254, 2, 4, 0]]


def test_no_weight_moves_by_more_than_half_a_scale() -> None:
    """From the smallest numbers to the largest; a scale in float16 would be of no use to the first third."""
    w = channels(*range(-34, 36))
    stored = quantise(w)
    error = (dequantise(stored).double() - w.double()).abs()
    assert (error <= stored.scale.double()[:, None] / 2).all()
    assert (stored.values.abs().amax(1) == 127).all()
    largest = w.double().abs().amax(1)
    assert ((stored.scale.double() * 127 / largest - 1).abs() <= 2**-8).all()


def test_kernels_have_a_scale_for_each_output_channel() -> None:
    w = channels(-3, 0, 2, width=4 * 3 * 3).view(3, 4, 3, 3)
    stored = quantise(w)
    assert stored.values.shape == w.shape
    assert stored.scale.shape == (3,)
    assert torch.equal(stored.values.flatten(1), quantise(w.flatten(1)).values)
    assert torch.equal(dequantise(stored), dequantise(quantise(w.flatten(1))).view_as(w))


def test_every_scale_is_found_again() -> None:
    """127 scales divided by 127, for each of the 32385 positive scales whose weights float32 holds."""
    bits = torch.arange(0x0080, 0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    largest = bits.float() * 127
    fits = largest.isfinite()
    stored = quantise(torch.stack([largest[fits], bits.float()[fits] * -50], dim=1))
    assert torch.equal(stored.scale, bits[fits])
    assert (stored.values == torch.tensor([127, -50])).all()


def test_channels_of_zeros_and_of_almost_nothing() -> None:
    w = torch.stack([torch.zeros(30), torch.full((30,), 1e-40), torch.linspace(-1, 1, 30)])
    stored = quantise(w)
    assert (stored.scale[:2] == TINY).all()
    back = dequantise(stored)
    assert (back[:2] == 0).all()
    assert (back[2] != 0).all()
    again = quantise(back)
    assert torch.equal(again.values, stored.values)
    assert torch.equal(again.scale, stored.scale)


def test_what_is_stored_of_each_tensor() -> None:
    big, row = torch.randn(160, 160), torch.randn(160)
    state = {
        "matrix": big,
        "half": big.bfloat16(),
        "table of one row": big.flatten()[None],
        "thin": torch.randn(SMALL, 2),
        "small": torch.randn(SMALL_MATRIX // 8 - 1, 8),
        "narrow": torch.randn(SMALL_MATRIX // 8, 8),
        "one pixel": torch.randn(64, 64, 1, 1),
        "small kernel": torch.randn(32, 64, 3, 3),
        "kernel": torch.randn(40, 64, 3, 3),
        "bias": row,
        "scalar": torch.tensor(4.6),
        "empty": torch.zeros(0),
        "zeros": torch.zeros(64),
        "large": row + 65520,
        "just fits": row.clamp(-1, 1) * 65504,
        "tiny": row.clamp(-1, 1) * 6e-5,
        "nan": row / 0 * 0,
        "bad matrix": big / 0,
        "statistics": row.double(),
        "ids": torch.arange(3),
    }
    stored = compact(state, buffers={"statistics"})
    kinds = {key: "int8" if isinstance(v, Int8) else str(v.dtype).removeprefix("torch.") for key, v in stored.items()}
    assert kinds == {
        "matrix": "int8",
        "half": "int8",
        "table of one row": "float16",
        "thin": "float16",
        "small": "float16",
        "narrow": "int8",
        "one pixel": "int8",
        "small kernel": "float16",
        "kernel": "int8",
        "bias": "float16",
        "scalar": "float16",
        "empty": "float16",
        "zeros": "float16",
        "large": "float32",
        "just fits": "float16",
        "tiny": "float32",
        "nan": "float32",
        "bad matrix": "float32",
        "statistics": "float64",
        "ids": "int64",
    }
    back = loaded(stored)
    for key in ("large", "tiny", "nan", "bad matrix", "statistics", "ids"):
        torch.testing.assert_close(back[key], state[key], rtol=0, atol=0, equal_nan=True)
    for key in ("table of one row", "thin", "small", "small kernel", "bias", "scalar", "just fits"):
        assert (back[key].float() - state[key]).abs().max() <= state[key].abs().max() / 2048


def test_weights_at_the_end_of_float32_stay_finite() -> None:
    for largest in (3.4e38, 3.39e38, 3.3e38, torch.finfo(torch.float32).max):
        for sign in (1, -1):
            back = loaded(compact({"w": torch.full((160, 160), sign * largest)}))["w"]
            assert back.isfinite().all()
            torch.testing.assert_close(back, torch.full((160, 160), sign * largest), rtol=2**-8, atol=0)


def state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "a.weight": torch.randn(160, 160) * 10.0 ** torch.randint(-20, 20, (160, 1)),
        "a.bias": torch.randn(160),
        "b.weight": torch.randn(64, 48, 3, 3),
        "b.bias": torch.randn(64) * 1e-7,
        "c.weight": torch.zeros(160, 128),
        "mean": torch.randn(64),
        "ids": torch.arange(3),
    }


def store(folder: Path, tensors: dict[str, Tensor], size: int = weights.MAX_SHARD_SIZE) -> dict[str, bytes]:
    weights.save_folder(folder, {}, compact(tensors, {"mean"}), max_shard_size=size)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [weights.MAX_SHARD_SIZE, 5000, 1])
def test_a_second_save_writes_the_same_bytes(tmp_path: Path, size: int) -> None:
    first = store(tmp_path / "a", state(), size)
    back = weights.load_folder(tmp_path / "a")[1]
    assert {v.dtype for key, v in back.items() if key.endswith("weight")} == {torch.float32}
    assert torch.equal(back["mean"], state()["mean"])
    assert torch.equal(back["ids"], state()["ids"])
    assert store(tmp_path / "b", {key: back[key].to(v.dtype) for key, v in state().items()}, size) == first
    weights.save_folder(tmp_path / "c", *weights.stored_folder(tmp_path / "a"), max_shard_size=2**30)  # as it is
    assert all(torch.equal(v, back[k]) for k, v in weights.load_tensors(tmp_path / "c").items())


def test_a_file_says_what_its_values_and_scales_are(tmp_path: Path) -> None:
    store(tmp_path, state())
    path = tmp_path / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        names = json.loads(file.metadata()[HEADER])
    assert names == {f"{key}.weight": f"{key}.weight.scale" for key in "abc"}
    tensors = load_file(path)
    assert {tensors[key].dtype for key in names} == {torch.int8}
    assert {tensors[key].dtype for key in names.values()} == {torch.bfloat16}
    assert weights.load_tensors(tmp_path).keys() == state().keys()
    assert weights.stored_dtype(tmp_path) == "int8"
    stored = sum(v.numel() * v.element_size() for v in tensors.values())
    assert stored == num_bytes(state(), {"mean"}) + 2 * 64  # b.bias is too small for float16


def test_a_weight_and_its_scale_lie_in_one_file(tmp_path: Path) -> None:
    store(tmp_path, state(), size=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == len(state())
    for key in "abc":
        assert index[f"{key}.weight"] == index[f"{key}.weight.scale"]


def test_names_of_scales_are_no_names_of_weights(tmp_path: Path) -> None:
    taken = state() | {
        "a.weight.scale": torch.ones(64),
        "a.weight..scale": torch.randn(160, 160),
        "q": torch.ones(2).char(),
    }
    store(tmp_path, taken)
    back = weights.load_tensors(tmp_path)
    assert back.keys() == taken.keys()
    assert torch.equal(back["a.weight.scale"], torch.ones(64))
    assert back["q"].dtype == torch.int8, "a whole number of the model's own"
    tensors, header = pack(compact(taken))
    assert json.loads(header[HEADER])["a.weight"] == "a.weight...scale"
    assert loaded(unpack(tensors, header)).keys() == taken.keys()


def test_what_is_not_int8_has_no_such_header(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights.save_folder(tmp_path, {}, {"w": torch.randn(160, 160).to(dtype), "ids": torch.arange(3)})
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert weights.load_tensors(tmp_path)["w"].dtype == dtype
        assert weights.stored_dtype(tmp_path) == str(dtype).removeprefix("torch.")
    assert weights.stored_dtype(tmp_path / "nothing") == ""


def without(key: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(key)


def with_(**changes: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({key.replace("_", "."): value for key, value in changes.items()})


ONES = torch.ones(160, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("a.weight.scale"), "the int8 weight 'a.weight', whose scale 'a.weight.scale' is not there"),
        (without("a.weight"), "the int8 weight 'a.weight', which is not there"),
        (
            with_(a_weight_scale=ONES[:159]),
            r"one scale for each channel of 'a.weight', got \[159\] scales for \[160, 160\]",
        ),
        (with_(a_weight_scale=ONES[:, None]), r"got \[160, 1\] scales for \[160, 160\] weights"),
        (with_(a_weight_scale=ONES.half()), "a scale of bfloat16 for 'a.weight', got int8 and a scale of float16"),
        (with_(a_weight=torch.ones(160, 160)), "'a.weight', got float32 and a scale of bfloat16"),
        (with_(a_weight=torch.tensor(1).char()), r"got \[160\] scales for \[\] weights"),
        (with_(a_weight_scale=ONES * 0), "of 'a.weight' must be positive and finite, got 0 to 0"),
        (with_(a_weight_scale=ONES / 0), "must be positive and finite, got inf to inf"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    store(tmp_path, state())
    path = tmp_path / "model.safetensors"
    tensors, names = load_file(path), json.dumps({"a.weight": "a.weight.scale"})
    change(tensors)
    save_file(tensors, path, metadata={HEADER: names})
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}") as caught:
        weights.load_tensors(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["", "[]", "{", '{"a.weight": 3}', "null"])
def test_a_header_that_says_nothing_is_refused(tmp_path: Path, header: str) -> None:
    save_file({"a.weight": torch.ones(160, 160).char()}, tmp_path / "model.safetensors", metadata={HEADER: header})
    with pytest.raises(DataError, match=r"model\.safetensors: its header names no int8 weights and scales: "):
        weights.load_tensors(tmp_path)
