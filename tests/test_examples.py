"""Every example runs, in miniature, and stays readable in length."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object, cwd: Path) -> str:
    script = next(path for path in EXAMPLES if path.name.startswith(name))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short_and_say_what_they_do(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert text.count("\n") < 150


def test_00_diffusion_in_100_lines(tmp_path: Path) -> None:
    assert (ROOT / "examples" / "00_diffusion_in_100_lines.py").read_text().count("\n") <= 100
    run("00", "--steps", 3, "--out", tmp_path / "toy.png", cwd=tmp_path)
    assert (tmp_path / "toy.png").is_file()


def test_01_generate(tmp_path: Path) -> None:
    out = run("01", "a red cube", "--num", 1, "--stop-after", "decoder", "--out", tmp_path, cwd=tmp_path)
    assert "repeated exactly: True" in out
    assert (tmp_path / "picture.png").is_file()


def test_02_train_each_stage(tmp_path: Path) -> None:
    small = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "data.num_workers=0", "train.val_every=0"]
    out = run("02", "--out", tmp_path / "mine", "--minutes", 1, *small, cwd=tmp_path)
    assert out.count("1 steps, 2 pictures, done") == 5
    assert (tmp_path / "mine" / "cube.png").is_file()
    assert (tmp_path / "mine" / "pipeline" / "model_index.json").is_file()
