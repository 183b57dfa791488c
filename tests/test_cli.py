"""The command line: what it prints, what it writes, and which exit code a mistake gets."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from t2i.pipelines.dalle2 import DALLE2

from t2i.cli import main

ROOT = Path(__file__).resolve().parent.parent


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
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    assert (
        run(monkeypatch, "generate", "a red cube", "--model", model, "--out", first, "--steps", "decoder=4,prior=3")
        == 0
    )
    assert run(monkeypatch, "generate", "--from", first, "--out", second) == 0
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


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
        (["generate", "a red cube", "--num", "0"], 2, "num_images_per_prompt"),
        (["generate", "a red cube", "--out", "cube.jpg"], 2, ".png"),
        (["generate", "a red cube", "--from", "x.png"], 2, "--from"),
        (["generate", "--from", "no-such.png"], 3, "no-such.png"),
        (["train", "no-such.yaml"], 2, "no-such.yaml"),
        (["train", "configs/shapes/decoder.yaml", "train.step=3"], 2, "did you mean 'steps'"),
        (["train", "configs/shapes/decoder.yaml", "stage=decodr"], 2, "did you mean 'decoder'"),
        (["train", "configs/shapes/up256.yaml", "train.steps=-1"], 2, "train.steps"),
        (["train", "configs/shapes/up256.yaml", "data.source=no/such/folder", "train.out=OUT"], 3, "no/such/folder"),
        (["train", "configs/shapes/up256.yaml", "optim.lr=fast"], 2, "optim.lr"),
        (["info", "nothing-like-it"], 2, "unknown model"),
        (["genrate", "a red cube"], 2, ""),
        (["data", "shapes", "--out", "OUT", "--size", "64", "--crop", "128"], 2, "crop"),
    ],
)
def test_mistakes_get_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path / "out") if a == "OUT" else a.replace("=OUT", f"={tmp_path / 'out'}") for a in arguments]
    if arguments[0] == "generate" and "--model" not in arguments and "--from" not in arguments:
        arguments += ["--model", str(model)]
    assert run(monkeypatch, *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == (1 if message else 0)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1/status").exists(), reason="needs a read-only place")
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    start = time.perf_counter()
    assert run(monkeypatch, "generate", "a red cube", "--model", model, "--out", tmp_path / "file" / "x.png") in (2, 3)
    assert "file" in capsys.readouterr().err
    assert time.perf_counter() - start < 2


def test_data_shapes_writes_shards_that_the_loader_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, "data", "shapes", "--count", 10, "--size", 32, "--shard-size", 6, "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]
    from t2i.data.loader import DataConfig, Loader

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
    assert run(monkeypatch, "info") == 0
    assert "torch" in capsys.readouterr().out


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
    code = "import sys, t2i.cli; print('torch' in sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "False"


def test_train_a_stage_and_open_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps on rendered scenes, as a newcomer would start, in miniature."""
    out = tmp_path / "up"
    small = [
        "model.unet.channels=32",
        "data.num_workers=0",
        "train.num_samples=2",
        "train.batch_size=2",
        "train.steps=2",
    ]
    assert run(monkeypatch, "train", "configs/shapes/up256.yaml", f"train.out={out}", *small) == 0
    from t2i.registry import load_stage

    assert load_stage(out, expect="upsampler").config.image_size == 256
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert (out / "samples" / "step-000000.png").is_file()


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
        losses.append([json.loads(row)["loss"] for row in (out / "metrics.jsonl").read_text().splitlines()])
    assert len(losses[0]) >= 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
