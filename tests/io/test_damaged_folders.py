"""Folders of stages and pipelines that are damaged anyhow: one line, soon, and no memory for what they claim."""

import json
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import small_upsampler
from small import adm

from t2i.core.errors import DataError, T2IError
from t2i.io.weights import stage_folders
from t2i.pipeline.base import Pipeline
from t2i.stages.registry import load_stage, save_stage

_NUMBERS = (0, 1, 2, 3, 64, 4096, 10**6, 10**12, -1, 0.5, 1e308)
VALUES = (*_NUMBERS, None, "x", "", "a\0b", "../x", "y" * 5000, [], {}, [1, 2], True)


def spots(data: Any) -> list[tuple[Any, Any]]:
    """Every container in some JSON, with each of its keys."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [(data, key) for key in keys] + [spot for key in keys for spot in spots(data[key])]


def mutated(data: Any, chance: random.Random) -> Any:
    """Some JSON of which a few values are others, gone, or beside new ones."""
    data = json.loads(json.dumps(data))
    for _ in range(chance.randint(1, 3)):
        if not (places := spots(data)):
            break
        inside, key = chance.choice(places)
        match chance.randrange(4):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[chance.choice(["x", "_x", "stage", "unet", "decoder", "a\0b"])] = chance.choice(VALUES)
            case _:
                inside[key] = chance.choice(VALUES)
    return data if chance.random() < 0.95 else chance.choice(VALUES)


def refused(load: Callable[[], object], what: object) -> None:
    """It loads, or is one line of an error of ours."""
    said = ""
    try:
        load()
    except T2IError as error:
        said = str(error)
    assert "\n" not in said, what
    assert len(said) < 20_000, what


def try_jsons(path: Path, load: Callable[[], object], count: int, seed: int) -> None:
    good, chance = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.1:
            cut = bytearray(good[: chance.randrange(len(good))])
            path.write_bytes(cut)
        else:
            path.write_text(json.dumps(mutated(json.loads(good), chance)))
        refused(load, path.read_bytes()[:2000])
    path.write_bytes(good)


def try_headers(path: Path, load: Callable[[], object], count: int, seed: int) -> None:
    good, chance = path.read_bytes(), random.Random(seed)
    end = 8 + struct.unpack("<Q", good[:8])[0]
    for _ in range(count):
        header = json.dumps(mutated(json.loads(good[8:end]), chance)).encode()
        data = bytearray(struct.pack("<Q", len(header)) + header + good[end:])
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
        if chance.random() < 0.3 and data:
            data[chance.randrange(min(len(data), 400))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        refused(load, bytes(data[:2000]))
    path.write_bytes(good)


@pytest.mark.parametrize("count", [20, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_folders_are_one_line_and_cost_nothing(count: int, tmp_path: Path) -> None:
    save_stage(tmp_path / "stage", "upsampler", small_upsampler(8, 32))
    adm().save_pretrained(tmp_path / "pipe")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stage, pipe = (lambda: load_stage(tmp_path / "stage")), (lambda: Pipeline.from_pretrained(tmp_path / "pipe"))
    try_jsons(tmp_path / "stage" / "config.json", stage, count, 1)
    try_jsons(tmp_path / "pipe" / "model_index.json", pipe, count, 2)
    try_headers(tmp_path / "stage" / "model.safetensors", stage, count, 3)
    assert stage()
    assert pipe()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5e5  # KB


def with_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[end:])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data_offsets", [0, 4], "model.safetensors is damaged or truncated"),
        ("shape", [2**40], "model.safetensors is damaged or truncated"),
        ("dtype", "X7", "model.safetensors is damaged or truncated"),
        ("dtype", "I32", "is int32, expected float32"),
    ],
)
def test_headers_that_claim_something_else(key: str, value: object, message: str, tmp_path: Path) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    with_header(tmp_path / "model.safetensors", lambda header: header["unet.conv_in.bias"].update({key: value}))
    with pytest.raises(DataError, match=message) as caught:
        load_stage(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [3, None, [], ["t2i"], ["t2i", 3], "decoder", {"path": "x"}])
def test_an_entry_of_a_pipeline_that_names_no_stage_is_refused(entry: object, tmp_path: Path) -> None:
    """An optional stage is not passed over without a word."""
    with pytest.raises(DataError, match=r"classifier must be \[library, kind\]"):
        stage_folders(tmp_path, {"_t2i_version": "0.2.0", "classifier": entry, "settings": {}})
    assert stage_folders(tmp_path, {"safety_checker": None}) == {}  # of another library's pipeline
