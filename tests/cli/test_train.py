"""What `t2i train` tells before it trains: its configs, their keys, what a run would take."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_clip, small_prior
from PIL import Image

from t2i.cli.main import main
from t2i.core.assets import bundled_configs, find_config
from t2i.core.config import flatten
from t2i.core.errors import UsageError
from t2i.run import load_run
from t2i.stages.registry import stage
from t2i.train.log import unknown_words


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr()
    return int(stop.value.code or 0), told.out, told.err


def test_every_config_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _, out, _ = said(monkeypatch, capsys, "configs")
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert list(lines) == bundled_configs()
    assert len(lines) > 40
    for name, purpose in lines.items():
        assert find_config(name).read_text().startswith(f"# {purpose}\n")
        assert purpose.endswith((".", ":"))


@pytest.mark.parametrize("name", ["decoder", "up256", "clip", "prior", "adm-classifier", "reader"])
def test_help_of_a_config_lists_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    config = f"configs/shapes/{name}.yaml"
    code, out, _ = said(monkeypatch, capsys, "train", config, "--help", "train.steps=123")
    assert code == 0
    listed = {line.split(":")[0].strip() for line in out.splitlines() if line.startswith("  ")}
    tables = ("needs", "data.captions", "data.num_things")
    wanted = dict(flatten(load_run(config, []).model_dump()))
    lacking = {key: value for key, value in wanted.items() if key not in listed and not key.startswith(tables)}
    assert all(value is None or value == {} for value in lacking.values()), "sections that are null, or have no keys"
    assert not {key for key in lacking if not key.startswith(("model.ports", "model.latents", "task", "train.eval"))}
    assert "  train.steps: int = 123 — optimiser steps of the whole run\n" in out
    assert "  train.log_every: int = 20 — " in out
    assert max(map(len, out.splitlines())) <= 120


def test_help_shows_the_default_where_a_config_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, out, _ = said(monkeypatch, capsys, "train", "configs/shapes/decoder.yaml", "--help")
    assert "  model.unet.channels: int = 64 (default 128) — level L has round(channels" in out
    assert "  task.sampling.steps: text or int = 25 — a respacing of the training process" in out
    assert "  model.ports.clip_image.scale: number = 11.3 (default 1) — embeddings are multiplied by it" in out
    assert "  model.ports.classes.num: int = 0 — of labels; 0 for" in out, "also of sections that are null"
    assert "  train.device: auto | cpu | cuda = auto" in out


def test_help_without_a_config_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = said(monkeypatch, capsys, "train", "--help")
    assert (code, "--dry-run" in out, "KEY=VALUE" in out) == (0, True, True)
    code, _, err = said(monkeypatch, capsys, "train")
    assert (code, "which config?" in err) == (2, True)
    code, _, err = said(monkeypatch, capsys, "train", "configs/shapes/ddpm.yaml", "--help", "train.stps=3")
    assert (code, "did you mean 'train.steps'" in err) == (2, True)


def test_a_misspelt_config_is_answered_before_torch_is_imported() -> None:
    program = (
        "import sys\nsys.argv = ['t2i', 'train', 'confgs/shapes/ddpm.yaml']\nfrom t2i.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "did you mean 'configs/shapes/ddpm.yaml'" in done.stderr


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("shapes/decodr.yaml", "configs/shapes/decoder.yaml"),
        ("configs/dalle2/pior.yaml", "configs/dalle2/prior.yaml"),
        ("noised_clip.yaml", "configs/glide/noised-clip.yaml"),
    ],
)
def test_near_names_of_configs(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"no such file, did you mean '{nearest}'"):
        find_config(name)
    with pytest.raises(UsageError, match="no such file; t2i configs lists those at hand"):
        find_config("qqqq.yaml")


def test_a_dry_run_tells_data_memory_and_time_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    before = sorted(tmp_path.rglob("*"))
    few = ["train.steps=7200", "train.batch_size=2", "data.num_workers=0", "model.unet.channels=32", "data.size=32"]
    few += [
        "data.crop=16",
        f"data.source={tmp_path / 'photos'}",
        f"train.out={tmp_path / 'out'}",
        "data.val_fraction=0",
    ]
    code, out, _ = said(monkeypatch, capsys, "train", "configs/shapes/up256.yaml", *few, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert f"data: {tmp_path / 'photos'}, 5 samples to train on" in out
    params = stage("upsampler").model(load_run("configs/shapes/up256.yaml", few).model).parameters()
    assert f"network: {sum(p.numel() for p in params) / 1e6:.2f} M parameters, of which" in out
    assert "GB in these steps on cpu; of it weights " in out
    seconds = float(out.partition("time: ")[2].partition(" s a step of 2 pictures, ")[0])
    assert 0 < seconds < 60
    assert re.search(r"for 7200 steps, and \d+ grids of [\d.e+]+ s, \d+ saves of [\d.e-]+ s: .* in all", out)
    few += ["train.steps=4", "train.num_samples=1"]
    _, out, _ = said(monkeypatch, capsys, "train", "configs/shapes/up256.yaml", *few, "--dry-run")
    assert re.search(r"for 4 steps, and 2 grids of [^,]*, 1 save of ", out)  # the first before any step
    code, _, err = said(monkeypatch, capsys, "train", "configs/shapes/up256.yaml", *few, "--dry-run", "data.crop=15")
    assert (code, "data.crop=15 must be a multiple of" in err) == (2, True)
    said(monkeypatch, capsys, "train", "configs/shapes/up256.yaml", *few, "train.sample_every=0", "train.steps=1")
    few += ["train.num_threads=1"]
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    _, out, _ = said(monkeypatch, capsys, "train", "configs/shapes/up256.yaml", *few, "--dry-run")
    assert re.search(r"for 3 steps, and 1 grid of ", out)
    assert out.endswith(f"goes to {tmp_path / 'out'} and continues from step 1 of 4\n")
    assert threads == [1]


def test_an_unknown_vocabulary_is_answered_with_the_key_of_that_stage() -> None:
    captions = ["a penguin on a surfboard"]

    def told(config: str) -> str:
        run = load_run(f"configs/shapes/{config}.yaml", ["model.unet.channels=32"] if "up" in config else [])
        spec = stage(run.stage)
        task = spec.task(spec.model(spec.complete(run.model, {}, run.data)), run.task)  # type: ignore[call-arg]
        return unknown_words(task, captions) or ""

    assert "; model.tokenizer.kind=clip reads any word" in told("clip")
    ports = "; model.ports.text.tokenizer.kind=clip reads any word"
    assert ports in told("glide")
    assert ports in told("glide-upsampler")
    prior = stage("prior").task(small_prior(), clip=small_clip())  # type: ignore[call-arg]
    problem = unknown_words(prior, captions)
    assert problem is not None
    assert "they are read with clip, which must be trained to read any word before this stage: t2i train" in problem
    assert unknown_words(prior, ["a red cube"]) is None


@pytest.mark.parametrize("config", ["clip", "glide", "glide-upsampler", "noised-clip"])
def test_the_keys_that_are_named_are_those_of_the_config(config: str) -> None:
    section = "model." if "clip" in config else "model.ports.text."
    run = load_run(f"configs/shapes/{config}.yaml", [f"{section}tokenizer.kind=clip", f"{section}tokenizer.context=77"])
    tokenizer = run.model.tokenizer if "clip" in config else run.model.ports.text.tokenizer  # type: ignore[attr-defined]
    assert (tokenizer.kind, tokenizer.context) == ("clip", 77)
