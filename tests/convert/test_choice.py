"""Averaged weights first, common words taken off names, what a file is told from its bytes: and all of it is said."""

import gzip
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_upsampler
from flat_network import FACTS, unpublished
from golden_tools import fill_state_dict, load_case
from safetensors.torch import save_file
from torch import Tensor

from t2i.convert.convert import convert_files, read_weights
from t2i.convert.folder import weight_files
from t2i.core.errors import DataError, UsageError
from t2i.io.weights import stored_dtype
from t2i.pipeline.base import Pipeline
from t2i.stages.registry import load_stage, save_stage

GIVEN = [*FACTS, "order=new"]
WEIGHTS = unpublished()[1]
ZEROS = {key: torch.zeros_like(value) for key, value in WEIGHTS.items()}


def under(prefix: str, weights: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor] = WEIGHTS) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def undotted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model_ema.{key.replace('.', '')}": value for key, value in weights.items()}


def inner(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return under("inner_model.", weights)


DDP = under("module.", ZEROS)
PAIRS: dict[str, dict[str, Any]] = {
    "DiT, rosinality": {"model": ZEROS, "ema": WEIGHTS, "opt": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "ema_model": {"state_dict": ZEROS, "ema_model": WEIGHTS},
    "ema_state_dict": {"model": ZEROS, "ema_state_dict": WEIGHTS},
    "timm": {"state_dict": ZEROS, "state_dict_ema": WEIGHTS},
    "k-diffusion": {"model": inner(ZEROS), "model_ema": inner(WEIGHTS), "ema_sched": {"power": 1}},
    "ema-pytorch": {
        "model": ZEROS,
        "ema": under("online_model.", ZEROS) | under("ema_model.") | {"step": torch.tensor(1000)},
    },
    "torch's AveragedModel": {"model": ZEROS, "swa": {"n_averaged": torch.tensor(3), **under("module.")}},
    "latent diffusion": {
        "state_dict": under("model.", ZEROS) | undotted(WEIGHTS) | {"model_ema.decay": torch.ones(())}
    },
    "score_sde": {"model": DDP, "ema": {"decay": 0.999, "shadow_params": list(WEIGHTS.values())}},
    "a network in each, DDP": {"net": DDP, "net_ema": under("module.")},
}


@pytest.mark.parametrize("name", PAIRS)
def test_averaged_weights_are_taken_and_told(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch.save(PAIRS[name], tmp_path / "x.pt")
    assert same(read_weights(tmp_path / "x.pt"))
    assert "x.pt: taken are the averaged weights" in caplog.text
    assert "not the raw weights" in caplog.text
    assert same(read_weights(tmp_path / "x.pt", "raw"), ZEROS)
    assert "x.pt: taken are the raw weights" in caplog.text


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (under("module."), "module."),
        (under("module._orig_mod."), "module._orig_mod."),
        ({"state_dict": under("model."), "epoch": 1, "hyper_parameters": {}}, "model."),
        ({"state_dict": under("model.diffusion_model.")}, "model.diffusion_model."),
        ({"model": under("module."), "optimizer": {}, "args": {"lr": 1}}, "module."),
    ],
)
def test_words_before_all_names_are_taken_off_and_told(
    content: dict[str, Any], prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.save(content, tmp_path / "x.pt")
    convert_files([tmp_path / "x.pt"], tmp_path / "out", given=GIVEN)
    assert torch.equal(
        load_stage(tmp_path / "out").state_dict()["unet.conv_in.weight"], WEIGHTS["input_blocks.0.0.weight"]
    )
    assert f"every name begins with {prefix!r}" in caplog.text


def test_words_that_a_network_puts_before_its_own_names_stay(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    torch.save({"state_dict": {"net.learned_query": torch.ones(2)}}, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt").keys() == {"net.learned_query"}
    save_file(WEIGHTS, tmp_path / "plain.SFT")
    assert same(read_weights(tmp_path / "plain.SFT"))
    assert caplog.text == ""


def test_decoders_of_dalle2_pytorch_have_their_averages_numbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    case = load_case("unclip_nets.json", "dev-d2p-decoder-1.1.0")["weights"][0]
    weights = fill_state_dict(case["keys"], case["overrides"])
    net = {key.removeprefix("unets.0."): value for key, value in weights.items() if key.startswith("unets.0.")}
    tables = {key: torch.zeros(shape) for key, shape in case["not_filled"]}
    ema = {f"0.{part}.{key}": x for part in ("online_model", "ema_model") for key, x in net.items()}
    ema |= {"0.initted": torch.tensor(True), "0.step": torch.tensor(1000)}
    content = {"model": {k: v * 0 for k, v in weights.items()} | tables, "ema": ema, "version": "1.1.0"}
    torch.save(content, tmp_path / "x.pth")
    assert same(read_weights(tmp_path / "x.pth"), weights | tables)
    assert f"{len(tables)} tensors have no average, such as 'noise_schedulers.0.alphas_cumprod'" in caplog.text
    convert_files([tmp_path / "x.pth"], tmp_path / "out", given=["image_size=16"])
    got = load_stage(tmp_path / "out").state_dict()["conv_in.0.weight"]
    assert torch.equal(got, net["init_conv.convs.0.weight"])


def test_weights_that_are_asked_for_and_not_there(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=r"x.pt: holds no averaged weights, but raw weights 'model'"):
        read_weights(tmp_path / "x.pt", "ema")
    with pytest.raises(UsageError, match="weights must be ema or raw, got 'averaged'"):
        convert_files([tmp_path / "x.pt"], tmp_path / "out", weights="averaged")  # type: ignore[arg-type]
    torch.save({"model": WEIGHTS, "ema": {"shadow_params": [torch.ones(3)]}}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"the averages in 'ema.shadow_params' have no names"):
        read_weights(tmp_path / "x.pt")
    assert same(read_weights(tmp_path / "x.pt", "raw"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html><title>Log in</title>", "is a web page"),
        (gzip.compress(b"weights", mtime=0), "is packed with gzip"),
        (b"Access denied", "is text and not weights; it begins with 'Access denied'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is a HDF5 file"),
        (bytes(99), "not a file of weights, or damaged"),
    ],
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "model.safetensors"])
def test_what_a_file_is_instead_of_weights(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_weights(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    if name == "model.safetensors":
        save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_stage(tmp_path)


def test_archives_without_tensors_and_weights_with_a_wrong_suffix(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("model.safetensors", b"x")
    with pytest.raises(DataError, match="a zip archive without tensors; unpack it"):
        read_weights(tmp_path / "x.ckpt")
    torch.save(WEIGHTS, tmp_path / "torch.safetensors")
    save_file(WEIGHTS, tmp_path / "safe.ckpt")
    assert same(read_weights(tmp_path / "torch.safetensors"))
    assert same(read_weights(tmp_path / "safe.ckpt"))


@pytest.mark.parametrize(("wrong", "message"), [(float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite")])
def test_weights_that_are_not_finite_are_refused(wrong: float, message: str, tmp_path: Path) -> None:
    bad = WEIGHTS["out.2.weight"].clone()
    bad.view(-1)[:2] = wrong
    torch.save(WEIGHTS | {"out.2.weight": bad}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=rf"2 of the {bad.numel()} numbers of 'out.2.weight' are {message}"):
        convert_files([tmp_path / "x.pt"], tmp_path / "out", given=GIVEN)
    assert not (tmp_path / "out").exists()


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    torch.save(WEIGHTS | {"out.2.bias": WEIGHTS["out.2.bias"].to(torch.int8)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"'out.2.bias' is int8, expected floating numbers"):
        convert_files([tmp_path / "x.pt"], tmp_path / "out", given=GIVEN)


@pytest.mark.parametrize(
    ("key", "odd", "message"),
    [
        ("out.2.bias", torch.ones(6).to_sparse(), "'out.2.bias' is sparse, or has no numbers"),
        ("out.2.bias", torch.empty(6, device="meta"), "'out.2.bias' is sparse, or has no numbers"),
        ("out.2.bias", torch.ones(6).to(torch.float8_e4m3fn), "is float8_e4m3fn, expected floating numbers of 16 bits"),
        ("input_blocks.0.0.weight", torch.ones(()), "the first convolution takes 0 channels"),
        ("out.2.weight", torch.ones(()), "no U-Net has weights of such shapes"),
        ("time_embed.0.weight", torch.ones(4, 0), "no U-Net has weights of such shapes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_weights_of_odd_kinds_and_shapes_are_one_line(key: str, odd: Tensor, message: str, tmp_path: Path) -> None:
    torch.save(WEIGHTS | {key: odd}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=message):
        convert_files([tmp_path / "x.pt"], tmp_path / "out", given=GIVEN)
    assert not (tmp_path / "out").exists()


def sharded(folder: Path, stem: str, index: str, middle: str = "") -> None:
    folder.mkdir()
    keys = list(WEIGHTS)
    parts = {f"{stem}{middle}-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for file, names in parts.items():
        save_file({key: WEIGHTS[key] for key in names}, folder / file)
    where = {key: file for file, names in parts.items() for key in names}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def test_variants_and_shards_of_a_folder_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stem = "diffusion_pytorch_model"
    sharded(tmp_path / "shards", stem, f"{stem}.safetensors.index.json")
    sharded(tmp_path / "half-shards", stem, f"{stem}.safetensors.index.fp16.json", ".fp16")
    for name in ("shards", "half-shards"):
        assert same(read_weights(tmp_path / name)), name
    half = {key: value.half() for key, value in WEIGHTS.items()}
    (tmp_path / "half").mkdir()
    save_file(half, tmp_path / "half" / f"{stem}.fp16.safetensors")
    assert same(read_weights(tmp_path / "half"), half)
    assert caplog.text == ""
    save_file(WEIGHTS, tmp_path / "half" / f"{stem}.safetensors")
    assert same(read_weights(tmp_path / "half"))
    assert f"taken are the weights {stem}.safetensors, not {stem}.fp16.safetensors" in caplog.text
    next((tmp_path / "shards").glob("*-00002-of-*")).unlink()
    with pytest.raises(DataError, match=r"00002-of-00002.safetensors does not exist"):
        read_weights(tmp_path / "shards")


def test_full_precision_and_averages_come_first(tmp_path: Path) -> None:
    names = ["non_ema.safetensors", "fp16.safetensors", "bin", "safetensors"]
    for number, name in enumerate(names):
        (tmp_path / f"diffusion_pytorch_model.{name}").touch()
        expected = ["non_ema.safetensors", "fp16.safetensors", "bin", "safetensors"][number]
        assert weight_files(tmp_path) == [tmp_path / f"diffusion_pytorch_model.{expected}"]


def test_weights_are_not_replaced_by_what_is_made_of_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path)
    before = path.read_bytes()
    for given in (path, tmp_path):
        with pytest.raises(UsageError, match=r"would be replaced by what is made of it"):
            convert_files([given], f"{tmp_path}/../{tmp_path.name}", given=GIVEN)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == before
    path.rename(tmp_path / "theirs.safetensors")
    convert_files([tmp_path / "theirs.safetensors"], tmp_path, given=GIVEN)
    assert (tmp_path / "theirs.safetensors").read_bytes() == before


def test_a_stage_of_ours_is_stored_in_another_precision(tmp_path: Path) -> None:
    save_stage(tmp_path / "mine", "upsampler", small_upsampler(8, 16))
    done = convert_files([tmp_path / "mine"], tmp_path / "small", dtype="int8")
    assert done.stage == "upsampler"
    assert stored_dtype(tmp_path / "small") == "int8"
    assert load_stage(tmp_path / "small").config == load_stage(tmp_path / "mine").config
    size, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("mine", "small"))
    assert small < 0.6 * size
    with pytest.raises(
        UsageError, match=r"mine is a stage of t2i already \(upsampler\): dtype is all that can be another one"
    ):
        convert_files([tmp_path / "mine"], tmp_path / "x", dtype="int8", network="adm-64")
    with pytest.raises(UsageError, match="would be replaced by what is made of it"):
        convert_files([tmp_path / "mine"], tmp_path / "mine", dtype="int8")


def test_a_folder_and_a_file_are_not_taken_for_each_other(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "mine.pt")
    with pytest.raises(DataError, match=r"holds none of .*; give the file itself, such as .*mine.pt"):
        read_weights(tmp_path)
    with pytest.raises(DataError, match=r"mine.pt is a file; a stage is a folder with config.json"):
        load_stage(tmp_path / "mine.pt")
    with pytest.raises(UsageError, match=r"mine.pt is a file; a model is a folder with model_index.json"):
        Pipeline.from_pretrained(tmp_path / "mine.pt")
    convert_files([tmp_path / "mine.pt"], tmp_path / "out", given=GIVEN)
    with pytest.raises(UsageError, match="is a decoder of t2i already"):
        read_weights(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "out" / "model.safetensors").mkdir()
    with pytest.raises(DataError, match=r"model.safetensors is a folder, expected a file of weights"):
        load_stage(tmp_path / "out")
