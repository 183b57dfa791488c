"""A wrong command is answered before anything heavy is imported, and every failure is one line with its exit code."""

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from t2i.cli import main as command
from t2i.core.errors import FullDiskError, NonFiniteError, Stopped
from t2i.io.provenance import read_recipe
from t2i.pipeline.habits import OPTIONS
from t2i.pipelines.dalle2 import DALLE2

SCRIPT = """
import sys
from t2i.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "open_clip"} & set(sys.modules)
    print("heavy:", ", ".join(sorted(heavy)) or "none")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--version"], 0, "t2i "),
        (["--help"], 0, "Usage"),
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["generate"], 2, "no prompt given"),
        (["generate", "--model", "openai/glide"], 2, "no prompt given"),
        (["generate", "a", "--stpes", "3"], 2, "No such option: --stpes"),
        (["generate", "a", "--model", "shaeps"], 2, "unknown model 'shaeps'.*did you mean 'shapes'"),
        (["generate", "a", "--steps", "abc"], 2, "--steps: expected a whole number"),
        (["generate", "a", "--seed", str(2**70)], 2, "a seed lies between"),
        (["generate", "a", "--sampler", "ddimm"], 2, "--sampler: unknown 'ddimm'.*did you mean 'ddim'"),
        (["generate", "a", "--dtype", "float33"], 2, "unknown dtype 'float33'.*did you mean 'float32'"),
        (["generate", "a", "--preset", "karol"], 2, "unknown preset 'karol'.*did you mean 'karlo'"),
        (["generate", "a", "--stop-after", "decodr"], 2, "stop_after: unknown stage 'decodr'.*did you mean 'decoder'"),
        (["generate", "a", "--steps", "bad=3"], 2, "steps: unknown stage 'bad'; this model has .*prior"),
        (
            ["generate", "a", "--model", "openai/glide", "--steps", "x=3"],
            2,
            "unknown stage 'x'; this model has decoder",
        ),
        (["generate", "a", "--image", "nosuch.png"], 3, "nosuch.png does not exist"),
        (["variations", "nosuch.png"], 3, "nosuch.png does not exist"),
        (["variations", "a.png", "--model", "nosuch"], 2, "unknown model 'nosuch'"),
        (["convert", "nosuch.pt", "--out", "x"], 3, "nosuch.pt does not exist"),
        (["assemble", "x", "clip=nosuch"], 3, "clip=nosuch is no stage"),
        (
            ["assemble", "x", "clip=nosuch", "--kind", "dale2"],
            2,
            "unknown kind of pipeline 'dale2'.*did you mean 'dalle2'",
        ),
        (["assemble", "x", "clip=nosuch", "--dtype", "int9"], 2, "unknown dtype 'int9' of weights"),
        (["eval", "bpd", "--steps", "x"], 2, "--steps: expected a whole number"),
        (["info", "nosuch"], 2, "unknown model 'nosuch'"),
    ],
)
def test_a_wrong_command_is_answered_without_torch(arguments: list[str], code: int, told: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "heavy: none"
    assert re.search(told, done.stdout + done.stderr)


def test_a_command_ends_without_a_look_for_cycles_in_all_that_it_imported() -> None:
    """Which takes seconds after torch, many on a busy machine, while nothing is shown."""
    code = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count() > 0))\n" + SCRIPT
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True"


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_neighbours_are_answered_with_ours(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert ended(monkeypatch, "generate", "a cube", f"--{option}", "3") == 2
    assert capsys.readouterr().err == f"error: no such option --{option}; here it is {OPTIONS[option]}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n GPU 0"), 5),
        (MemoryError(), 5),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."), 5),
        (NonFiniteError("stage 'prior' produced values that are not finite"), 4),
        (FullDiskError("no space left to write a.png"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 3),
        (Stopped("stopped by SIGTERM at step 3; the same command continues"), 75),
    ],
)
def test_no_failure_becomes_a_usage_error(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command, "app", fail)
    assert ended(monkeypatch) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ") is (code != 75)  # a stop that was asked for is none
    assert told.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(RuntimeError, match="ours"):
        command.main()


@pytest.fixture(scope="module")
def drawn(pipe: DALLE2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a saved model."""
    folder = tmp_path_factory.mktemp("recipes")
    pipe.save_pretrained(folder / "model")
    pipe("a red cube", seed=1, progress=False, stop_after="decoder").save(folder / "a.png")
    return folder / "a.png"


def crafted(drawn: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    recipe = read_recipe(drawn)
    change(recipe["arguments"])
    text = PngImagePlugin.PngInfo()
    text.add_itxt("t2i", json.dumps(recipe))
    Image.open(drawn).save(path := drawn.with_name("crafted.png"), pnginfo=text)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_images_per_prompt": 10**9}, "an argument 'num_images_per_prompt', which none of this model holds"),
        ({"callback": "x"}, "an argument 'callback'"),
        ({"device": "cuda"}, "an argument 'device'"),
        ({"progress": True}, "an argument 'progress'"),
        ({"nosuch": 1}, "an argument 'nosuch'"),
        ({"stop_after": "prior"}, "its recipe: the prior draws embeddings, not pictures"),
        ({"stop_after": "nosuch"}, "its recipe: stop_after: unknown stage 'nosuch'"),
        ({"stop_after": [1]}, r"its recipe: stop_after: unknown stage \[1\]"),
        ({"max_batch": 10**30}, "its recipe: max_batch must be a whole number of at most"),
        ({"seed": [2**70]}, "its recipe: a seed lies between"),
        ({"seed": ["x"]}, "its recipe: a seed must be a whole number"),
        ({"steps": {"prior": [1]}}, "its recipe: steps of prior: expected a whole number"),
        ({"guidance": {"decoder": 10**400}}, "its recipe: guidance of decoder: expected"),
        ({"sampler": 3}, "its recipe: sampler of prior: unknown 3"),
        ({"prompt": 3}, "its recipe: a prompt must be a string"),
        ({"negative_prompt": [1]}, "its recipe: a negative prompt must be a string"),
        ({"max_tile": "x"}, "its recipe: max_tile must be"),
    ],
)
def test_a_recipe_sets_nothing_that_a_user_could_not(
    change: dict[str, Any], told: str, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = crafted(drawn, lambda arguments: arguments.update(change))
    out = drawn.with_name("again.png")
    assert ended(monkeypatch, "generate", "--from", path, "--out", out) == 3
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"error: {path}: its recipe")
    assert re.search(told, error[0])
    assert not out.exists()


def test_an_untouched_recipe_is_repeated(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, "generate", "--from", drawn, "--out", drawn.with_name("again.png")) == 0
    assert drawn.with_name("again.png").read_bytes() == drawn.read_bytes()
