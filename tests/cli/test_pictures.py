"""The commands that begin with a picture: what they write, and which exit code a mistake gets."""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import ddpm

from t2i.cli.main import main
from t2i.core.progress import Alive
from t2i.io.provenance import read_recipe
from t2i.pipelines.dalle2 import DALLE2

QUICK = ["--steps", "decoder=3", "--stop-after", "decoder", "--seed", "4"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def assert_one_line(capsys: pytest.CaptureFixture, message: str) -> None:
    """An error of one line, beside warnings, that says `message`."""
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if not line.startswith("warning:")]) == 1


@pytest.fixture(scope="module")
def model(pipe: DALLE2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with two pictures in it, and one that is not square."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        pixels = np.random.RandomState(i).randint(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"{i}.png")
    Image.new("RGB", (30, 40)).save("tall.png")
    return tmp_path


def test_variations_are_numbered_and_tell_their_seeds(
    monkeypatch: pytest.MonkeyPatch, model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, "variations", "0.png", "--num", 2, "--eta", 0.5, "--model", model, *QUICK) == 0
    assert capsys.readouterr().out.splitlines() == ["out-0.png  seed 4", "out-1.png  seed 5"]
    assert Image.open("out-1.png").size == (32, 32)
    assert read_recipe("out-1.png")["arguments"]["eta"] == [0.5, 0.5]
    assert run(monkeypatch, "variations", "0.png", "--num", 2, "--row", "--model", model, *QUICK) == 0
    assert Image.open("out.png").size == (2 * 34 - 2, 32)
    assert run(monkeypatch, "variations", "0.png", "--num", 2, "--out", "all.gif", "--model", model, *QUICK) == 0
    assert Image.open("all.gif").n_frames == 2
    assert run(monkeypatch, "variations", "0.png", "--num", 2, "--out", "a.jpg", "--model", model, *QUICK) == 0
    assert read_recipe("a-1.jpg")["arguments"] == read_recipe("out-1.png")["arguments"] | {"eta": [1.0, 1.0]}
    assert run(monkeypatch, "generate", "--from", "out-1.png") == 2
    assert "was made from another picture (variations)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a red cube"],
        ["variations", "0.png"],
        ["interpolate", "0.png", "1.png"],
        ["text-diff", "0.png", "--from-text", "", "--to-text", "a red cube"],
        ["upsample", "0.png"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_draws_in_silence_without_a_terminal(
    command: list[str], monkeypatch: pytest.MonkeyPatch, model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("t2i.cli.options.Alive", partial(Alive, every=0.01))
    Image.new("RGB", (8, 8)).save("0.png")
    quick = ["--steps", 2] if command[0] == "upsample" else QUICK
    assert run(monkeypatch, *command, "--model", model, *quick) == 0
    assert re.search(r"^drawing: .* so far$", capsys.readouterr().err, re.MULTILINE)


def test_an_interpolation_is_a_row_or_an_animation(
    monkeypatch: pytest.MonkeyPatch, model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["interpolate", "0.png", "1.png", "--num", 3, "--model", model, *QUICK]
    assert run(monkeypatch, *command, "--out", "row.png") == 0
    assert capsys.readouterr().out == "row.png  seed 4\n"
    assert Image.open("row.png").size == (3 * 34 - 2, 32)
    assert read_recipe("row.png")["arguments"]["theta"] == [0, 0.5, 1]
    assert run(monkeypatch, *command, "--noise", "fixed", "--out", "row.GIF") == 0
    assert Image.open("row.GIF").n_frames == 3
    assert run(monkeypatch, "interpolate", "0.png", "a red cube", "--num", 2, "--model", model, *QUICK) == 0
    assert read_recipe("out.png")["arguments"]["b"] == ["a red cube"] * 2


def test_a_text_diff_goes_on_to_the_largest_picture(monkeypatch: pytest.MonkeyPatch, model: Path, here: Path) -> None:
    texts = ["--from-text", "a red cube", "--to-text", "a blue cube"]
    assert run(monkeypatch, "text-diff", "0.png", *texts, "--num", 2, "--steps", "2", "--model", model) == 0
    assert Image.open("out.png").size == (2 * 130 - 2, 128)
    arguments = read_recipe("out.png")["arguments"]
    assert arguments["after"] == ["a blue cube"] * 2
    assert arguments["theta"] == [0, 0.5]


def test_a_picture_is_drawn_larger_whole_or_in_tiles(
    monkeypatch: pytest.MonkeyPatch, model: Path, here: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.open("0.png").resize((32, 48)).save("high.png")
    command = ["upsample", "high.png", "--model", model, "--steps", 2, "--seed", 3]
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().out == "out.png  128 × 192  seed 3\n"
    assert run(monkeypatch, *command, "--start-at", "up1024", "--max-tile", 32, "--out", "tiles.png") == 0
    assert Image.open("tiles.png").size == (64, 96)
    assert read_recipe("tiles.png")["arguments"]["max_tile"] == 32


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["variations"], 2, "Missing argument"),
        (["variations", "none.png"], 3, "none.png does not exist"),
        (["variations", "tall.png"], 2, "must be square, got 30 × 40"),
        (["variations", "0.png", "--num", "0"], 2, "'--num'"),
        (["variations", "0.png", "--eta", "2"], 2, "'--eta'"),
        (["variations", "0.png", "--out", "a.bmp"], 2, "must end in .png, .jpg, .jpeg, .webp, .gif, got"),
        (["variations", "0.png", "--out", "0.png/x.png"], 2, "0.png is a file, expected a folder"),
        (["variations", "0.png", "--stop-after", "prior"], 2, "unknown stage 'prior'; stages are decoder"),
        (["variations", "0.png", "--steps", "decodr=3"], 2, "did you mean 'decoder'"),
        (["variations", "0.png", "--guidance", "x"], 2, "--guidance"),
        (["interpolate", "0.png"], 2, "Missing argument"),
        (["interpolate", "0.png", "two.png"], 3, "two.png does not exist"),
        (["interpolate", "0.png", "two.tif"], 3, "two.tif does not exist"),
        (["interpolate", "0.png", "", "--model", "nowhere"], 2, "the prompt is empty"),  # told before a model is opened
        (["interpolate", "0.png", "1.png", "--num", "1"], 2, "'--num'"),
        (["interpolate", "0.png", "1.png", "--noise", "some"], 2, "known are slerp and fixed"),
        (["interpolate", "0.png", "1.png", "--out", "a.bmp"], 2, ".jpg, .jpeg, .webp, .gif, got a.bmp"),
        (["text-diff", "0.png", "--to-text", "a cube"], 2, "Missing option '--from-text'"),
        (["text-diff", "0.png", "--from-text", "a", "--to-text", "", "--model", "nowhere"], 2, "the prompt is empty"),
        (["text-diff", "0.png", "--from-text", "a cube", "--to-text", "a cube"], 2, "embedded at the same place"),
        (["text-diff", "0.png", "--from-text", "a", "--to-text", "a cube", "--theta", "-1"], 2, "'--theta'"),
        (["upsample", "0.png", "--start-at", "up25"], 2, "no upsampler 'up25'; this model has up256, up1024"),
        (["upsample", "tall.png"], 2, "the sides must be multiples of"),
        (["upsample", "0.png", "--max-tile", "0"], 2, "'--max-tile'"),
        (["upsample", "0.png", "--max-tile", "1"], 2, "max_tile of up256: must be at least"),
        (["upsample", "0.png", "--out", "a.gif"], 2, "--out must end in .png, .jpg, .jpeg, .webp, got a.gif"),
    ],
)
def test_mistakes_get_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, model: Path, here: Path, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    chosen = [] if "--model" in arguments else ["--model", model]
    assert run(monkeypatch, *arguments, *chosen) == code
    assert_one_line(capsys, message)
    assert sorted(path.name for path in here.iterdir()) == ["0.png", "1.png", "tall.png"]


def test_models_that_see_no_pictures_are_told(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture
) -> None:
    ddpm().save_pretrained("other")
    assert run(monkeypatch, "variations", "0.png", "--model", "other") == 2
    assert "other does nothing with pictures" in capsys.readouterr().err
    assert run(monkeypatch, "upsample", "0.png", "--model", "other") == 2
    assert "other has no upsamplers that see pictures alone" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "--max-tile", "64", "--model", "other") == 2
    assert "max_tile is for upsamplers, of which this model has none" in capsys.readouterr().err


@pytest.fixture
def masks(here: Path) -> Path:
    """Beside the pictures a mask of their right half, one of another size, one that masks nothing, one that
    is cut off, and a program that is named like a picture."""
    half = Image.new("L", (40, 40))
    half.paste(255, (20, 0, 40, 40))
    half.save("half.png")
    half.resize((20, 20)).save("small.png")
    Image.new("RGB", (40, 40)).save("black.png")
    (here / "fake.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    (here / "cut.png").write_bytes((here / "half.png").read_bytes()[:60])
    return here


def test_generate_draws_anew_what_is_masked_or_changes_the_whole(
    monkeypatch: pytest.MonkeyPatch, model: Path, masks: Path
) -> None:
    asked = ["generate", "a red cube", "--image", "0.png", *QUICK, "--model", model]
    assert run(monkeypatch, *asked, "--mask", "half.png", "--out", "inpainted.png") == 0
    assert run(monkeypatch, *asked, "--strength", "0", "--out", "same.png") == 0
    assert run(monkeypatch, *asked, "--strength", "1", "--out", "edited.png") == 0
    inpainted, same, edited = (np.asarray(Image.open(f"{n}.png")) for n in ("inpainted", "same", "edited"))
    middle = same.shape[1] // 2
    assert (inpainted[:, :middle] == same[:, :middle]).all(), "outside of the mask nothing changes"
    assert (inpainted[:, middle:] != same[:, middle:]).any()
    assert (edited != same).any()
    assert read_recipe(masks / "inpainted.png")["task"] == "inpaint"
    Image.open("half.png").convert("RGB").save("colour.png")
    assert run(monkeypatch, *asked, "--mask", "colour.png", "--out", "again.webp") == 0
    assert read_recipe(masks / "again.webp")["arguments"] == read_recipe(masks / "inpainted.png")["arguments"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--mask", "half.png"], 2, "--mask and --strength are for an --image"),
        (["--image", "0.png", "--mask", "half.png", "--strength", "0.5"], 2, "give --mask, to draw a part anew, or"),
        (["--image", "0.png", "--mask", "small.png"], 2, "mask"),
        (["--image", "0.png", "--mask", "black.png"], 2, "the mask is empty"),
        (["--image", "fake.jpg", "--mask", "half.png"], 3, "fake.jpg is EPS, not one of JPEG, PNG, WebP, GIF, BMP"),
        (["--image", "0.png", "--mask", "cut.png"], 3, "cut.png"),
        (["--image", "0.png", "--mask", "none.png"], 3, "none.png"),
        (["--image", "tall.png", "--mask", "half.png"], 2, "square"),
        (["--image", "0.png", "--strength", "1.5"], 2, "strength"),
    ],
)
def test_mistakes_with_masks_get_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, model: Path, masks: Path, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    before = sorted(masks.iterdir())
    assert run(monkeypatch, "generate", "a red cube", *arguments, *QUICK, "--model", model) == code
    assert_one_line(capsys, message)
    assert sorted(masks.iterdir()) == before
