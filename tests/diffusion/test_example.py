"""The example that explains diffusion runs on its own and keeps its promise of 100 lines."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "00_diffusion_in_100_lines.py"


def test_diffusion_in_100_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 100
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--steps", "30", "--out", str(tmp_path / "out.png")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    picture = Image.open(tmp_path / "out.png")
    assert picture.size == (768, 192)
    assert picture.convert("L").getextrema() == (0, 255)
