"""`t2i eval report`: a page that is whole, holds everything, and shows what users wrote as text."""

import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small import glide

from t2i.core.errors import UsageError
from t2i.evals import side_by_side
from t2i.evals.page import Cell, Point, embedded, gallery, page, plot, section, table
from t2i.evals.side_by_side import Plan, report
from t2i.pipeline.base import Pipeline

VOID = {"meta", "img", "br"}
TINY = Plan(("cube", "<script>alert(1)</script> & more"), (0, 7), 0, 4, (1.0, 2.0), 2, "clip", 1, 4)


class Page(HTMLParser):
    """What stands in a page, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two small GLIDEs by the names a and b, which count their calls."""
    calls: list[Any] = []

    def opened(name: str, device: str = "auto") -> Pipeline:
        pipe = glide()
        pipe.source, pipe.weights = name, f"weights of {name}"
        kind = type(pipe)

        class Counted(kind):  # type: ignore[misc, valid-type]
            def __call__(self, *args: Any, **more: Any) -> Any:
                calls.append((name, args, more))
                return super().__call__(*args, **more)

        pipe.__class__ = Counted
        return pipe

    monkeypatch.setattr(Pipeline, "from_pretrained", staticmethod(opened))
    return calls


def test_a_report_is_one_whole_page(tmp_path: Path, models: list[Any]) -> None:
    out = tmp_path / "report.html"
    assert report(["a", "b"], out, TINY, device="cpu", command="t2i eval report --models a,b") == (
        f"{out}: a, b side by side"
    )
    text = out.read_text()
    found = Page(text)
    assert "<script>alert" not in text
    assert "<script>alert(1)</script> & more" in found.text
    loaded = [value for _, attrs in found.tags for key, value in attrs.items() if key in ("src", "href")]
    assert len(loaded) == 2 * 2 * 2
    assert all(str(value).startswith("data:image/webp;base64,") for value in loaded)
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")
    for said in ("Samples", "How far", "What guidance trades", "weights of a", "seed 7", "--models a,b", "CLIP score"):
        assert said in found.text
    assert text.count("<polyline") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_models_draw_the_same_prompts_with_the_same_seeds(tmp_path: Path, models: list[Any]) -> None:
    report(["a", "b"], tmp_path / "r.html", TINY, device="cpu")
    of_a, of_b = ([(args, more) for name, args, more in models if name == each] for each in "ab")
    assert of_a == of_b
    assert of_a[0][1]["seed"] == [0, 7, 0, 7]
    assert [more["guidance"] for _, more in of_a if "guidance" in more] == [{"decoder": 1.0}, {"decoder": 2.0}]


def test_a_killed_report_draws_nothing_twice(
    tmp_path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.html"
    if (child := os.fork()) == 0:
        monkeypatch.setattr(side_by_side, "_frontier", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        report(["a"], out, TINY, device="cpu")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    report(["a"], out, TINY, device="cpu")
    assert all("guidance" in more for _, _, more in models)
    assert out.exists()


def test_mistakes_are_one_line(tmp_path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for names, said in ((["a", "a"], "different names"), ([], "none")):
        with pytest.raises(UsageError, match=said):
            report(names, tmp_path / "r.html", TINY)
    with pytest.raises(UsageError, match="reads captions"):
        report(["a"], tmp_path / "r.html", Plan(extractor="pixels"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="expected a folder"):
        report(["a"], tmp_path / "file" / "r.html", TINY)
    assert models == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "shapess"], "shapes"),
        (["--models", ","], "at least one"),
        (["--models", "shapes", "--guidance", "1,x"], "--guidance"),
        (["--models", "shapes", "--num", "3"], "4 pictures or more"),
        (["--models", "shapes", "--prompts", "/nowhere"], "/nowhere"),
        (["--models", "shapes-adm"], "draws classes"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "t2i", "eval", "report", "--out", str(tmp_path / "r.html"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode in (2, 3)
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_small_pictures_stay_sharp() -> None:
    assert len(embedded(Image.new("RGB", (16, 16)), 192)) > 30
    rows = [("a & b", "seed 1", [Image.new("RGB", (300, 200), "red"), Image.new("RGB", (16, 16))])]
    found = Page(page("x", [section("s", gallery(["m", '"n"'], rows), table("t", ["m"], {"r": [Cell("1", "± 2")]}))]))
    assert [attrs["alt"] for tag, attrs in found.tags if tag == "img"] == ["a & b, by m", 'a & b, by "n"']


def test_a_plot_says_its_numbers() -> None:
    curves = {
        "m": [Point(0.1, 20.0, 0.01, 1.0, "1"), Point(0.05, 30.0, 0.0, 0.0, "4")],
        "n": [Point(0.1, 25, 0, 0, "2")],
    }
    text = plot(curves, "x", "y")
    found = Page(f"<div>{text}</div>")
    label = next(attrs["aria-label"] for tag, attrs in found.tags if tag == "svg")
    assert label == "y against x. m: 1 (0.1, 20), 4 (0.05, 30); n: 2 (0.1, 25)"
    assert text.count("<circle") == 3 + 2
    assert torch.tensor([float(x) for x in re.findall(r'cx="([\d.]+)"', text)]).max() <= 640
    assert "<svg" in plot({"m": [Point(1.0, 1.0, 0, 0, "1")]}, "x", "y")  # no range at all
