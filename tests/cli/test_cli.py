"""The command line: what it prints, what it writes, and which exit code a mistake gets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torch import Tensor

from t2i.cli.main import main
from t2i.cli.options import by_stage
from t2i.core.errors import DataError
from t2i.core.types import Batch
from t2i.io.images import save_png
from t2i.io.provenance import read_recipe
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.version import __version__

ROOT = Path(__file__).resolve().parent.parent.parent


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="session")
def model(pipe: DALLE2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def test_generate_writes_pictures_and_tells_the_seeds(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "cube.png"
    assert run(monkeypatch, "generate", "a red cube", "a cube", "--model", model, "--out", out, "--seed", 5) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out.with_stem(f'cube-{i}')}  seed {5 + i}" for i in range(2)]
    assert Image.open(out.with_stem("cube-0")).size == (128, 128)


def test_from_repeats_a_picture_exactly(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    """Also from another folder, when the picture was one of several and the model's path was relative."""
    monkeypatch.chdir(model.parent)
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    chosen = ["--steps", "decoder=4,prior=3", "--negative", "a sphere", "--out", out]
    assert run(monkeypatch, "generate", "a cube", "a red cube and a blue cube", "--model", model.name, *chosen) == 0
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "generate", "--from", "a-1.png", "--out", again) == 0
    assert again.read_bytes() == (tmp_path / "a-1.png").read_bytes()


def test_presets_are_repeated_too(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    chosen = ["--model", model, "--preset", "diffusers", "--guidance", "prior=40", "--steps", "decoder=2,up256=2"]
    assert run(monkeypatch, "generate", "a red cube", *chosen, "--out", out) == 0
    assert read_recipe(out)["preset"] == "diffusers"
    assert run(monkeypatch, "generate", "--from", out, "--out", again) == 0
    assert again.read_bytes() == out.read_bytes()
    assert run(monkeypatch, "generate", "--from", out, "--out", again, "--preset", "karlo") == 2
    assert "no other setting" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "a cube", "--model", "shapes-glide", "--preset", "karlo", "--out", again) == 2
    assert "presets are for chains of kind 'dalle2', this model is 'glide'" in capsys.readouterr().err


def test_model_device_and_dtype_go_before_the_recipe(
    monkeypatch: pytest.MonkeyPatch, pipe: DALLE2, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    never_saved = DALLE2(pipe.parts, pipe.settings).to("cpu")
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    never_saved("a red cube", seed=1, progress=False).save(first)
    assert run(monkeypatch, "generate", "--from", first, "--out", second) == 2
    assert "never saved; name the folder of its model with --model" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "--from", first, "--out", second, "--model", model) == 0
    assert Image.open(first).tobytes() == Image.open(second).tobytes()
    assert run(monkeypatch, "generate", "--from", second, "--out", first, "--dtype", "bfloat16") == 0
    assert read_recipe(first)["dtype"] == "bfloat16"
    assert run(monkeypatch, "generate", "--from", second, "--out", first, "--device", "gpu") == 2
    assert "no device 'gpu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": []},
        {"arguments": None},
        {"picture": 1},
        {"picture": "0"},
        {"model": 3},
        {"device": None},
        {"preset": 5},
        {"arguments": {"prompt": "a cube", "seed": [1], "colour": "red"}},
        {"arguments": {"prompt": "a cube", "seed": [1]}},
    ],
)
def test_a_foreign_recipe_is_refused(
    monkeypatch: pytest.MonkeyPatch, pipe: DALLE2, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    changes: dict,
) -> None:  # fmt: skip
    recipe = pipe("a red cube", seed=1, stop_after="decoder", progress=False).recipe_of(0) | {"model": str(model)}
    save_png(Image.new("RGB", (3, 3)), tmp_path / "a.png", recipe | changes)
    assert run(monkeypatch, "generate", "--from", tmp_path / "a.png", "--out", tmp_path / "b.png") == 3
    assert "a.png: its recipe is not one" in capsys.readouterr().err


def test_other_weights_or_torch_are_told(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    chosen = ["--stop-after", "decoder", "--sampler", "decoder=ddpm", "--seed", 3, "--out", first]
    assert run(monkeypatch, "generate", "a cube", "--model", model, *chosen) == 0
    assert run(monkeypatch, "generate", "--from", first, "--out", again) == 0
    assert "warning" not in capsys.readouterr().err
    assert first.read_bytes() == again.read_bytes()
    save_png(Image.open(first), first, read_recipe(first) | {"weights": "0123456789abcdef", "torch": "1.0"})
    assert run(monkeypatch, "generate", "--from", first, "--out", again) == 0
    told = capsys.readouterr().err
    assert "these are not the weights that drew this picture" in told
    assert "drawn with torch 1.0" in told


def test_text_of_others_moves_no_cursor_and_fills_no_screen(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In warnings and errors about a crafted recipe, about a file's name, and in what a config says."""
    first = tmp_path / "a.png"
    chosen = ["--stop-after", "decoder", "--steps", "1", "--seed", 3, "--out", first]
    assert run(monkeypatch, "generate", "a cube", "--model", model, *chosen) == 0
    save_png(Image.open(first), first, read_recipe(first) | {"torch": "1.0\x1b[2J\r\n" + "a" * 500_000})
    assert run(monkeypatch, "generate", "--from", first, "--out", tmp_path / "b.png") == 0
    told = capsys.readouterr().err
    assert "drawn with torch 1.0\\x1b[2J\\r\\naaa" in told
    assert "a… (500,0" in told
    assert "\x1b" not in told
    assert len(told) < 3000
    save_png(Image.open(first), first, read_recipe(first) | {"model": "\x1b]0;title\x07\u202egnp"})
    assert run(monkeypatch, "generate", "--from", first, "--out", tmp_path / "b.png") == 2
    assert "\\x1b]0;title\\x07\\u202egnp" in capsys.readouterr().err
    config = json.loads((model / "model_index.json").read_text())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(config | {"_class_name": "\x1b[2J"}))
    assert run(monkeypatch, "info", tmp_path / "model") in (2, 3)
    assert "\x1b" not in "".join(capsys.readouterr())


def test_a_picture_of_any_format_is_drawn_again(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    chosen = ["--stop-after", "decoder", "--steps", "1", "--seed", 3]
    for name in ("a.jpg", "a.webp"):
        assert run(monkeypatch, "generate", "a cube", "--model", model, *chosen, "--out", tmp_path / name) == 0
        assert run(monkeypatch, "generate", "--from", tmp_path / name, "--out", tmp_path / f"again-{name}") == 0
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()


def test_what_cannot_be_drawn_or_written_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(DALLE2, "__call__", lambda *_, **__: pytest.fail("drew"))
    half = DALLE2.assemble({"clip": model / "clip", "prior": model / "prior"})
    half.save_pretrained(tmp_path / "half")
    for wrong in (["--model", model, "--stop-after", "prior"], ["--model", tmp_path / "half"]):
        for command in (["generate", "a cube"], ["eval", "compose"]):
            if command[0] == "generate" or "--stop-after" in wrong:
                assert run(monkeypatch, *command, *wrong) == 2
                assert "draws embeddings, not pictures" in capsys.readouterr().err
    assert run(monkeypatch, "eval", "compose", "--model", "not/opened", "--out", tmp_path) == 2
    assert "--out must be a file" in capsys.readouterr().err


def test_data_of_so_many_things(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    few = ["data", "shapes", "--out", tmp_path / "a", "--count", 12, "--size", 8]
    assert run(monkeypatch, *few, "--num-things", "3=1") == 0
    with tarfile.open(tmp_path / "a" / "00000.tar") as tar:
        scenes = [json.load(tar.extractfile(name))["scene"] for name in tar.getnames() if name.endswith(".json")]
    assert [len(scene["things"]) for scene in scenes] == [3] * 12
    assert run(monkeypatch, *few) == 2
    assert "write to another folder" in capsys.readouterr().err
    for wrong in ("5=1", "x=1", "3", "1=-1", "x"):
        assert run(monkeypatch, "data", "shapes", "--out", tmp_path / "b", "--num-things", wrong) == 2
    assert "--num-things: expected such as 1=1,2=3" in capsys.readouterr().err


def test_bundled_weights_are_found_by_their_path_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "assemble", "mine", "clip=weights/shapes/clip", "prior=weights/shapes/prior") == 0
    assert run(monkeypatch, "info", "weights/shapes") == 0
    assert "up1024" in capsys.readouterr().out


def test_a_new_model_is_told_how_to_draw(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parts = [f"{name}={model / name}" for name in ("clip", "prior", "decoder")]
    chosen = ["--steps", "prior=3,decoder=ddim4", "--sampler", "decoder=ddpm", "--guidance", "prior=1.5"]
    assert run(monkeypatch, "assemble", tmp_path / "mine", *parts, *chosen) == 0
    settings = json.loads((tmp_path / "mine" / "model_index.json").read_text())["settings"]
    assert settings["steps"] == {"prior": 3, "decoder": "ddim4"}
    assert settings["sampler"]["decoder"] == "ddpm"
    assert settings["guidance"]["prior"] == 1.5
    for wrong, message in (
        (["--steps", "7"], "--steps: say of which stage, such as decoder=7"),
        (["--sampler", "decodr=ddim"], "sampler: unknown stage 'decodr', did you mean 'decoder'"),
        (["--sampler", "decoder=ddmp"], "sampler of decoder: unknown 'ddmp'"),
    ):
        assert run(monkeypatch, "assemble", tmp_path / "other", *parts, *wrong) == 2
        assert message in capsys.readouterr().err


def test_work_that_fails_leaves_no_empty_folder(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, "assemble", tmp_path / "a", f"clip={model / 'clip'}", f"prior={tmp_path}") == 3
    wrong = [f"train.out={tmp_path / 'b' / 'of' / 'c'}", f"train.resume={tmp_path / 'none'}"]
    assert run(monkeypatch, "train", "configs/shapes/up256.yaml", *wrong) == 2
    assert "none does not exist" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "x", "--model", "shpaes", "--out", tmp_path / "new" / "dir" / "x.png") == 2
    assert run(monkeypatch, "eval", "compose", "--model", "shpaes", "--out", tmp_path / "new" / "x.json") == 2
    (tmp_path / "c").mkdir()
    assert run(monkeypatch, "assemble", tmp_path / "c", f"clip={model / 'clip'}", f"prior={tmp_path}") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "what was there before stays"


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"t2i {__version__}\n"


def test_commas_part_stages_only_before_a_name() -> None:
    assert by_stage("steps", "decoder=10,10,3,2,2,prior=5", str) == {"decoder": "10,10,3,2,2", "prior": "5"}
    assert by_stage("steps", "10,10,3,2,2", str) == "10,10,3,2,2"
    assert by_stage("guidance", "prior=2, decoder=3.5", float) == {"prior": 2.0, "decoder": 3.5}


def test_an_interrupt_is_silent_and_130(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DALLE2, "__call__", interrupted)
    assert run(monkeypatch, "generate", "a red cube", "--model", model, "--out", tmp_path / "a.png") == 130


def test_a_folder_named_like_the_picture_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").mkdir()
    monkeypatch.setattr(DALLE2, "__call__", lambda *_, **__: pytest.fail("drew"))
    assert run(monkeypatch, "generate", "a red cube", "--model", model, "--out", tmp_path / "a.png") == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", ""], 2, "empty"),
        (["generate"], 2, "no prompt"),
        (["generate", "x" * 10_000], 2, "10,000 characters"),
        (["generate", "a red cube", "--model", "shpaes"], 2, "did you mean 'shapes'"),
        (["generate", "a red cube", "--steps", "-3"], 2, "-3"),
        (["generate", "a red cube", "--steps", "decoder=x=3,,"], 2, "--steps"),
        (["generate", "a red cube", "--guidance", "decodr=3"], 2, "did you mean 'decoder'"),
        (["generate", "a red cube", "--guidance", "three"], 2, "--guidance"),
        (["generate", "a red cube", "--stop-after", "decode"], 2, "did you mean 'decoder'"),
        (["generate", "a red cube", "--num", "0"], 2, "Invalid value for '--num'"),
        (["generate", "a red cube", "--colour", "red"], 2, "No such option: --colour"),
        (["generate", "a red cube", "--out", "/proc/x.png"], 2, "cannot write to /proc"),
        (["generate", "a red cube", "--out", "cube.bmp"], 2, "must end in .png, .jpg"),
        (["generate", "a red cube", "--device", "gpu"], 2, "no device 'gpu'"),
        (["generate", "a \udcff cube"], 2, "not valid UTF-8"),
        (["generate", "a red cube", "--from", "x.png"], 2, "--from"),
        (["generate", "--from", "no-such.png"], 3, "no-such.png"),
        (["train", "no-such.yaml"], 2, "no-such.yaml"),
        (["train", "configs/shapes/decodr.yaml"], 2, "did you mean 'configs/shapes/decoder.yaml'"),
        (["train", "confgs/shapes/ddpm.yaml"], 2, "no such file, did you mean 'configs/shapes/ddpm.yaml'"),
        (["train", "configs/shapes/decoder.yaml", "train.step=3"], 2, "did you mean 'train.steps'"),
        (["train", "configs/shapes/decoder.yaml", "lr=1"], 2, "unknown key 'lr', did you mean 'optim.lr'?"),
        (["train", "configs/shapes/clip.yaml", "train.batch_size=1", "train.out=OUT"], 2, "batch_size is too small"),
        (["train", "configs/shapes/decoder.yaml", "stage=decodr"], 2, "did you mean 'decoder'"),
        (["train", "configs/shapes/up256.yaml", "train.steps=-1"], 2, "train.steps"),
        (["train", "configs/shapes/up256.yaml", "data.source=no/such/folder", "train.out=OUT"], 3, "no/such/folder"),
        (["train", "configs/shapes/up256.yaml", "optim.lr=fast"], 2, "optim.lr"),
        (["train", "configs/shapes/up256.yaml", "model.unet.multipliers=[]"], 2, "model.unet.multipliers"),
        (["train", "configs/shapes/up256.yaml", "model.unet.multipliers=[0,1]"], 2, "model.unet.multipliers.0"),
        (["train", "configs/shapes/reader.yaml", "model.image_size=0"], 2, "model.image_size"),
        (["train", "configs/shapes/reader.yaml", "model.image_size=-1"], 2, "model.image_size"),
        (["train", "configs/shapes/up256.yaml", "data.source=EMPTY", "train.out=OUT"], 3, "empty holds no pictures"),
        (["train", "configs/shapes/up256.yaml", "train.out=/proc/x"], 2, "cannot write to /proc/x"),
        (["eval", "bpd", "--num-things", "5=1"], 2, "num_things must weigh 1 to 4 things, positively, got {5: 1.0}"),
        (["eval", "bpd", "--steps", "²"], 2, "--steps: expected a whole number or a spacing such as 'ddim50', got '²'"),
        (
            ["eval", "bpd", "--steps", "+-3"],
            2,
            "--steps: expected a whole number or a spacing such as 'ddim50', got '+-3'",
        ),
        (["eval", "captions", "--model", "x", "num_beam=2"], 2, "unknown key 'num_beam', did you mean 'num_beams'"),
        (["eval", "captions", "--model", "x", "top_p=0.9"], 2, "top_p=0.9 is for tokens that are drawn"),
        (["eval", "captions", "--model", "no/such"], 3, "no/such"),
        (["info", "nothing-like-it"], 2, "unknown model"),
        (["genrate", "a red cube"], 2, "No such command 'genrate'"),
        (["data", "shapes", "--out", "OUT", "--size", "64", "--crop", "128"], 2, "crop"),
        (["data", "shapes", "--out", "OUT", "--count", "1", "--seed", "-5"], 2, "'--seed'"),
    ],
)
def test_mistakes_get_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("out", "empty"):
        arguments = [re.sub(f"(^|=){name.upper()}$", rf"\1{tmp_path / name}", argument) for argument in arguments]
    if arguments[0] in ("generate", "eval") and "--model" not in arguments and "--from" not in arguments:
        arguments += ["--model", str(model)]
    assert run(monkeypatch, *arguments) == code
    error = capsys.readouterr().err
    assert message.replace("MODEL", str(model)) in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if not line.startswith("warning:")]) == 1


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    start = time.perf_counter()
    assert run(monkeypatch, "generate", "a red cube", "--model", model, "--out", tmp_path / "file" / "x.png") == 2
    assert "file is a file, expected a folder" in capsys.readouterr().err
    below = tmp_path / "file" / "below" / "x.png"
    assert run(monkeypatch, "generate", "a red cube", "--model", model, "--out", below) == 2
    assert "file is a file, expected a folder" in capsys.readouterr().err
    assert time.perf_counter() - start < 2


def test_weights_that_are_missing_or_cut_off_are_named(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(model, tmp_path / "m")
    weights = tmp_path / "m" / "prior" / "model.safetensors"
    command = ["generate", "a cube", "--model", tmp_path / "m", "--out", tmp_path / "new" / "a.png"]
    os.truncate(weights, weights.stat().st_size - 100)
    assert run(monkeypatch, *command) == 3
    assert f"error: {weights} is damaged or truncated" in capsys.readouterr().err
    weights.unlink()
    assert run(monkeypatch, *command) == 3
    assert capsys.readouterr().err == f"error: {weights} does not exist\n"
    assert not (tmp_path / "new").exists()


def test_words_that_a_model_does_not_know_are_named(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quick = ["--steps", "prior=1,decoder=1", "--stop-after", "decoder", "--out", tmp_path / "a.png"]
    assert run(monkeypatch, "generate", "a red unicorn", "--model", model, *quick) == 0
    assert "warning: the model does not know: unicorn\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        (["a cube", "x" * 10_000], "the prompt has 10,000 characters"),
        (["a cube", "--negative", "x" * 10_000], "the negative prompt has 10,000 characters"),
    ],
)
def test_what_no_model_reads_is_refused_before_one_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("opened"))
    assert run(monkeypatch, "generate", *arguments, "--model", "openai/glide") == 2
    assert message in capsys.readouterr().err


def test_data_shapes_writes_shards_that_the_loader_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, "data", "shapes", "--count", 10, "--size", 32, "--shard-size", 6, "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]
    from t2i.data.config import DataConfig
    from t2i.data.loader import Loader

    config = DataConfig(source=str(tmp_path / "*.tar"), size=32, num_workers=0, captions={"short": 1.0})
    batch = next(iter(Loader(config, seed=0, batch_size=10)))
    assert batch["image"].shape == (10, 3, 32, 32)
    assert len(set(batch["key"])) == 10
    before = (tmp_path / "00001.tar").stat().st_mtime_ns
    assert run(monkeypatch, "data", "shapes", "--count", 10, "--size", 32, "--shard-size", 6, "--out", tmp_path) == 0
    assert (tmp_path / "00001.tar").stat().st_mtime_ns == before


def test_info_names_the_stages(monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, "info", model) == 0
    text = capsys.readouterr().out
    assert all(stage in text for stage in ("clip", "prior", "decoder", "up256", "up1024"))
    assert run(monkeypatch, "info", model / "decoder") == 0
    assert "Decoder, 0." in capsys.readouterr().out
    assert run(monkeypatch, "info") == 0
    assert "torch" in capsys.readouterr().out


def test_a_disk_without_room_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    monkeypatch.setattr(DALLE2, "__call__", lambda *_, **__: pytest.fail("drew"))
    out = tmp_path / "new" / "a.png"
    assert run(monkeypatch, "generate", "a cube", "a sphere", "--num", "2", "--model", model, "--out", out) == 3
    assert "no space left in" in capsys.readouterr().err


def test_a_report_is_printed_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from t2i.evals.report import Report

    report = Report("the table", {"mean": 1})
    monkeypatch.setattr("t2i.evals.compose.compose", lambda *_, **__: report)
    monkeypatch.setattr(Report, "save", lambda *_: (_ for _ in ()).throw(DataError("no space left")))
    assert run(monkeypatch, "eval", "compose", "--out", tmp_path / "a.json") == 3
    shown = capsys.readouterr()
    assert "the table" in shown.out
    assert "no space left" in shown.err


def test_help_comes_within_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "t2i", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert "generate" in done.stdout
    assert min(seconds) < 1, seconds
    code = "import sys, t2i.cli.main; print('torch' in sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "False"


SMALL = [
    "model.unet.channels=32", "data.num_workers=0", "train.num_samples=2", "train.batch_size=2", "train.device=cpu"
]  # fmt: skip


def test_train_a_stage_and_open_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps on rendered scenes, as a newcomer would start, in miniature."""
    out = tmp_path / "up"
    assert run(monkeypatch, "train", "configs/shapes/up256.yaml", f"train.out={out}", "train.steps=2", *SMALL) == 0
    from t2i.stages.registry import load_stage

    assert load_stage(out, expect="upsampler").config.image_size == 256
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert (out / "samples" / "step-000000.png").is_file()


def test_a_loss_that_is_not_finite_is_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = [f"train.out={tmp_path}", "train.steps=3", "optim.lr=1e30", "train.sample_every=0", *SMALL]
    assert run(monkeypatch, "train", "configs/shapes/up256.yaml", *changes) == 4
    assert re.search("^error: .*NaN or infinite", capsys.readouterr().err, re.MULTILINE)


def test_a_signal_is_exit_code_75_and_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from t2i.stages.upsampler.task import UpsamplerTask

    def signalled(task: UpsamplerTask, batch: Batch) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(task, batch)

    loss = UpsamplerTask.loss
    monkeypatch.setattr(UpsamplerTask, "loss", signalled)
    command = ["train", "configs/shapes/up256.yaml", f"train.out={tmp_path}", "train.steps=2", "train.sample_every=0"]
    assert run(monkeypatch, *command, *SMALL) == 75
    assert f"SIGTERM: saved step 1 in {tmp_path}" in capsys.readouterr().err
    monkeypatch.setattr(UpsamplerTask, "loss", loss)
    assert run(monkeypatch, *command, *SMALL) == 0
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000001", "step-000002"]


def test_eval_compose_prints_a_row_per_task_and_writes_every_reading(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing here is trained, so that only the way from the command line to the table is tested."""
    from t2i.evals.compose import TASKS
    from t2i.stages.reader.model import Reader, ReaderConfig

    reader = Reader(ReaderConfig(widths=(8, 8, 16), blocks=(0, 1, 1)))
    monkeypatch.setattr("t2i.evals.compose.load_reader", lambda _: reader)
    monkeypatch.setattr("t2i.evals.compose.HELD_OUT", 4)
    out = tmp_path / "new" / "r.json"
    chosen = ["--steps", "prior=1,decoder=1", "--guidance", "decoder=1", "--seed", 7, "--out", out]
    rows = tmp_path / "rows.jsonl"
    assert run(monkeypatch, "eval", "compose", "--model", model, *chosen, "--rows", rows) == 0
    first = json.loads(rows.read_text().splitlines()[0])
    assert json.loads(first["metadata"])["include"] == [{"class": "cube", "count": 1}]
    assert first["tag"] == "single_object"
    printed = capsys.readouterr().out
    assert [line[:20].strip() for line in printed.splitlines()[1:7]] == list(TASKS)
    assert "on 4 held-out renders" in printed
    result = json.loads(out.read_text())
    assert len(result["pictures"]) == 120
    assert result["pictures"][0]["seed"] == 7
    assert result["recipe"]["arguments"]["steps"]["decoder"] == 1

    assert run(monkeypatch, "eval", "compose", "--model", model, *chosen, "--upsample-prompt", "rule") == 0
    written = json.loads(out.read_text())["recipe"]
    assert written["arguments"]["prompt"] != result["recipe"]["arguments"]["prompt"]
    assert written["asked"] == [picture["prompt"] for picture in result["pictures"]]
    assert run(monkeypatch, "eval", "compose", "--model", "not/opened", "--upsample-prompt", "rules") == 2


def test_eval_captions_prints_a_row_per_question_and_writes_every_caption(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from small import captioner

    from t2i.evals.captions import ROWS
    from t2i.stages.registry import save_stage

    save_stage(tmp_path / "captioner", "captioner", captioner())
    out = tmp_path / "r.json"
    command = ["eval", "captions", "--model", tmp_path / "captioner", "--num", 3, "--seed", 7, "--out", out]
    assert run(monkeypatch, *command, "num_beams=2", "no_repeat_ngram=3") == 0
    assert [line[:20].strip() for line in capsys.readouterr().out.splitlines()[1:5]] == list(ROWS)
    result = json.loads(out.read_text())
    assert [row["seed"] for row in result["captions"]] == [7, 8, 9]
    assert result["decoding"]["num_beams"] == 2


@pytest.mark.slow
def test_accelerate_launches_two_processes_without_gpus(tmp_path: Path) -> None:
    """The README's command follows the curve of one process: half the batch on each."""
    losses = []
    for count, launcher in ((1, []), (2, ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"])):
        out = tmp_path / str(count)
        small = ["model.unet.channels=32", "train.batch_size=4", "train.steps=3", "train.log_every=1"]
        command = [*launcher, "t2i", "train", "configs/shapes/up256.yaml", f"train.out={out}", "train.device=auto"]
        done = subprocess.run(
            [sys.executable, "-m", *command, *small, "train.num_threads=1", "train.sample_every=0"],
            cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert f"processes {count}" in done.stdout + done.stderr
        rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])  # the last one is of held-out pictures
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
