"""What stages are stored as, `dtype` and `save_dtype`: from training, from Python and from the command line."""

from pathlib import Path

import pytest
import torch
from conftest import small_clip, small_decoder, small_prior, small_upsampler
from torch import Tensor, nn

from t2i.cli.describe import describe
from t2i.cli.main import main
from t2i.convert.convert import convert_files
from t2i.core.errors import UsageError
from t2i.io import int8
from t2i.io.weights import load_tensors, stored_dtype, stored_folder
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import train
from t2i.stages.registry import load_stage, save_stage


def bound(weight: Tensor) -> Tensor:
    """How far int8 may move each weight, if it is large enough for scales."""
    rows = weight.flatten(1).abs().amax(1) / 127 * (1 + 2**-7) / 2
    return rows.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored of tiny networks in int8 is what is stored of large ones."""
    monkeypatch.setattr("t2i.io.int8.SMALL", 2048)


@pytest.mark.parametrize("make", [small_clip, small_prior, small_decoder, lambda: small_upsampler(8, 32)])
def test_a_stage_in_int8(make: type[nn.Module], tmp_path: Path) -> None:
    model = make()
    name = {"ClipEncoder": "clip"}.get(type(model).__name__, type(model).__name__.lower())
    save_stage(tmp_path / "a", name, model, dtype="int8")
    back = load_stage(tmp_path / "a", expect=name)
    buffers = dict(model.named_buffers())
    for key, value in model.state_dict().items():
        found = back.state_dict()[key]
        assert found.dtype == value.dtype
        if key in buffers or not value.is_floating_point():
            torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)
        elif value.ndim < 2 or value.numel() < int8.SMALL:
            assert ((found - value).abs() <= value.abs().max() / 2048).all()
        else:
            assert ((found - value).abs() <= torch.maximum(bound(value), value.abs().max() / 2048)).all()
    save_stage(tmp_path / "b", name, back, dtype=torch.int8)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    save_stage(tmp_path / "c", name, model, dtype="bfloat16")
    sizes = [(tmp_path / x / "model.safetensors").stat().st_size for x in "ac"]
    assert sizes[0] < sizes[1]


def test_unknown_dtypes_are_told_the_known_ones(pipe: DALLE2, tmp_path: Path) -> None:
    for wrong in ("int9", torch.int64):
        with pytest.raises(UsageError, match=r"unknown dtype 'int.*' of weights; use float32, bfloat16, float16, int8"):
            save_stage(tmp_path / "a", "upsampler", small_upsampler(8, 32), dtype=wrong)
        with pytest.raises(UsageError, match="unknown dtype 'int"):
            pipe.save_pretrained(tmp_path / "a", dtype=wrong)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match="unknown dtype 'int8'; use auto, float32, bfloat16, float16"):
        Pipeline.from_pretrained("shapes", dtype="int8")  # networks do not calculate in it


def test_a_pipeline_in_int8_draws(pipe: DALLE2, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "a", dtype="int8")
    settings = {"steps": 2, "seed": 3, "stop_after": "decoder"}
    opened = DALLE2.from_pretrained(tmp_path / "a", device="cpu")
    first = opened("a red cube", **settings).images[0]
    opened.save_pretrained(tmp_path / "b", dtype="int8")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    opened.save_pretrained(tmp_path / "float32")
    assert stored_dtype(tmp_path / "float32" / "decoder") == "float32"
    again = DALLE2.from_pretrained(tmp_path / "float32", device="cpu")("a red cube", **settings).images[0]
    assert again.tobytes() == first.tobytes()
    half = DALLE2.from_pretrained(tmp_path / "a", device="cpu", dtype="bfloat16")
    assert half("a red cube", **settings).images[0].size == first.size


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0  # type: ignore[return-value]


def test_assemble_writes_int8_and_info_says_so(
    pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pipe.save_pretrained(tmp_path / "a")
    parts = [f"{name}={tmp_path / 'a' / name}" for name in ("clip", "prior", "decoder")]
    assert run(monkeypatch, "assemble", tmp_path / "b", *parts, "--dtype", "int8") == 0
    assert run(monkeypatch, "assemble", tmp_path / "c", *parts, "--dtype", "int9") == 2
    assert "unknown dtype 'int9' of weights; use float32, bfloat16, float16, int8" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    for folder, dtype in (("a", "float32"), ("b", "int8")):
        for line, name in zip(
            describe(str(tmp_path / folder)).splitlines()[1:4], ("clip", "prior", "decoder"), strict=True
        ):
            size = sum(file.stat().st_size for file in (tmp_path / folder / name).glob("*.safetensors"))
            assert line.split()[:8] == [
                name,
                line.split()[1],
                "M",
                "parameters",
                "in",
                dtype,
                f"{size / 2**20:.1f}",
                "MiB",
            ]
    assert " M parameters in int8, " in describe(str(tmp_path / "b" / "prior"))


def test_a_config_tells_the_size_of_int8(tmp_path: Path) -> None:
    """But for the header of the file."""
    text = Path("configs/shapes/ddpm.yaml").read_text() + "\nsave_dtype: int8\n"
    (tmp_path / "ddpm.yaml").write_text(text)
    line = describe(str(tmp_path / "ddpm.yaml"))
    size = float(line.split(" MiB in int8, ")[0].split()[-1])
    save_stage(tmp_path, "decoder", load_stage("weights/shapes-ddpm/decoder"), dtype="int8")
    assert size == pytest.approx((tmp_path / "model.safetensors").stat().st_size / 2**20, abs=0.15)


def test_training_exports_int8(tmp_path: Path) -> None:
    changes = ["model.unet.channels=32", "data.size=256", "data.crop=16", "data.num_workers=0", "save_dtype=int8"]
    few = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "train.sample_every=0", "train.device=cpu"]
    train("configs/shapes/up256.yaml", [f"train.out={tmp_path / 'int8'}", *few, *changes])
    assert stored_dtype(tmp_path / "int8") == "int8"
    train("configs/shapes/up256.yaml", [f"train.out={tmp_path / 'float32'}", *few, *changes, "save_dtype=float32"])
    exact, rounded = (load_stage(tmp_path / name).state_dict() for name in ("float32", "int8"))
    key = max(exact, key=lambda name: exact[name].numel())
    assert ((exact[key] - rounded[key]).abs() <= bound(exact[key])).all()
    assert not torch.equal(exact[key], rounded[key])
    start = [f"init={tmp_path / 'int8'}", "train.steps=1"]
    train("configs/shapes/up256.yaml", [f"train.out={tmp_path / 'more'}", *few, *changes, *start])


def test_calibration_leaves_int8_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stage(tmp_path / "clip", "clip", small_clip(), dtype="int8")
    save_stage(tmp_path / "prior", "prior", small_prior(), dtype="int8")
    options = ["--clip", tmp_path / "clip", "--num", 2, "--device", "cpu"]
    assert run(monkeypatch, "calibrate", tmp_path / "prior", *options, "--out", tmp_path / "out") == 0
    before, after = stored_folder(tmp_path / "prior")[1], stored_folder(tmp_path / "out")[1]
    assert after.keys() - before.keys() == {"x_0_variance"}
    assert stored_dtype(tmp_path / "out") == "int8"
    first, second = load_tensors(tmp_path / "prior"), load_tensors(tmp_path / "out")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_config_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for write in (
        lambda: save_stage(tmp_path, "decoder", small_decoder()),
        lambda: convert_files([tmp_path / "nosuch.pt"], tmp_path),
        lambda: train("configs/shapes/up256.yaml", [f"train.out={tmp_path}"]),
    ):
        with pytest.raises(UsageError, match=r"config.json is of no stage of t2i, and would be replaced"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'
