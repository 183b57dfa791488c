"""Sheets of pictures: reference left, result right, the caption beneath, a legend above."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TinyTask, run

from t2i.core.errors import UsageError
from t2i.train.ema import Ema
from t2i.train.grids import Section, legend, save_sheet
from t2i.train.held_out import HeldOut
from t2i.train.objective import Objective

RED, BLUE = (255, 0, 0), (0, 0, 255)


def rows(count: int, side: int = 96) -> list[list[Image.Image]]:
    return [[Image.new("RGB", (side, side), colour) for colour in (RED, BLUE)] for _ in range(count)]


def sheet(path: Path, sections: Sequence[Section]) -> np.ndarray:
    save_sheet(sections, path)
    return np.array(Image.open(path))


def inside(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a colour."""
    y, x = np.nonzero((pixels == colour).all(axis=-1))
    return x.min(), y.min(), x.max(), y.max()


@pytest.mark.parametrize("side", [8, 32, 96, 130])
def test_result_stands_right_of_its_reference_and_words_around_both(tmp_path: Path, side: int) -> None:
    pixels = sheet(tmp_path / "a.png", [Section("left: red · right: blue", rows(1, side), ["two colours"])])
    left, top, right, bottom = inside(pixels, RED)
    assert inside(pixels, BLUE) == (right + 3, top, 2 * right - left + 3, bottom)
    assert (right - left + 1) % side == 0
    assert right - left + 1 >= 96
    ink = (pixels < 100).all(axis=-1)
    assert ink[:top].any()
    assert ink[bottom + 1 :].any()
    assert not ink[top : bottom + 1].any()


def test_rows_without_captions_take_less_room(tmp_path: Path) -> None:
    heights = [len(sheet(tmp_path / "a.png", [Section("x", rows(4), words)])) for words in (["a b"] * 4, [])]
    assert heights[0] > heights[1]


@pytest.mark.parametrize("caption", ["", "x" * 5000, "many words " * 400, "\x1b[2J\x00\n\ttabs", "猫 🐈 кот", "\udcff"])
def test_any_caption_leaves_pictures_where_they_are(tmp_path: Path, caption: str) -> None:
    pixels = sheet(tmp_path / "a.png", [Section("x", rows(2), ["fine", caption])])
    assert pixels.shape[1] < 500
    assert (pixels == RED).all(axis=-1).sum() == 2 * 96**2


def test_sections_stand_below_each_other(tmp_path: Path) -> None:
    own = [[Image.new("RGB", (96, 96), (0, 255, 0))]]
    pixels = sheet(tmp_path / "a.png", [Section("x", rows(2)), Section("own", own, ["a frog"])])
    assert inside(pixels, (0, 255, 0))[1] > inside(pixels, RED)[3]


def test_legends() -> None:
    assert legend(["drawn"]) == "drawn"
    assert legend(["picture", "drawn"]) == "left: picture · right: drawn"
    assert legend(["a", "b", "c"]) == "1: a · 2: b · 3: c"


class Prompted(TinyTask):
    """Makes a sentence a grey picture, as light as it is long."""

    takes_prompts = True
    asked: Sequence[tuple[str, int]] = ()

    def draw_prompts(self, asked: dict) -> torch.Tensor:
        self.asked = list(zip(asked["caption"], asked["seed"], strict=True))
        return torch.stack([torch.full((3, 8, 8), len(text) / 50 - 1) for text in asked["caption"]])


def test_every_grid_shows_prompts_with_the_same_seeds(tmp_path: Path) -> None:
    task, plain = Prompted(), tmp_path / "plain"
    run(tmp_path / "own", task, steps=2, sample_every=1, num_samples=4, prompts=("a frog", "two frogs on a log"))
    again = task.asked
    assert [text for text, _ in again] == ["a frog", "two frogs on a log"]
    assert len({seed for _, seed in again}) == 2
    run(tmp_path / "other", task, steps=1, num_samples=4, prompts=("a frog", "another"))
    assert task.asked[0] == again[0]
    run(plain, steps=2, sample_every=1, num_samples=4)
    for step in range(3):
        name = f"samples/step-{step:06d}.png"
        with Image.open(tmp_path / "own" / name) as own, Image.open(plain / name) as others:
            assert own.height > others.height
            assert own.crop((0, 30, *others.size)).tobytes() == others.crop((0, 30, *others.size)).tobytes()


@pytest.mark.parametrize("is_held_out", [True, False])
def test_what_is_not_held_out_is_not_called_so(is_held_out: bool) -> None:
    task = TinyTask()
    task.groups = ("held-out picture",)
    batch = {"image": torch.zeros(2, 3, 8, 8), "seed": [1, 2]}
    objective: Any = Objective(task.model, task.loss, torch.float32, torch.device("cpu"))
    held_out = HeldOut(task, objective, Ema(task.model, ()), torch.device("cpu"), lambda: (batch, is_held_out), list)
    assert (
        held_out.draw("step 3")[0].legend == f"step 3 · {'held-out picture' if is_held_out else 'picture trained on'}"
    )


def test_prompts_are_refused_where_nothing_is_drawn_from_sentences(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.prompts: this Net draws nothing from sentences; leave it out"):
        run(tmp_path, prompts=("a frog",))
