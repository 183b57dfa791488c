"""Every script of the laboratory runs end to end in its tiny mode, and its verdict is that of its differences."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

LABORATORY = Path(__file__).resolve().parents[1] / "examples" / "claims"
SCRIPTS = sorted(LABORATORY.glob("[0-9][0-9]_*.py"))


def tried(script: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a tiny run writes."""
    monkeypatch.syspath_prepend(str(LABORATORY))
    monkeypatch.setattr(sys, "argv", [script.name, "--tiny", "--work", str(folder), "--out", str(out)])
    before = set(sys.modules)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        for name in set(sys.modules) - before:
            if str(LABORATORY) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    facts: dict[str, Any] = json.loads((out / f"{script.stem}.json").read_text())
    return facts


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_tiny_run_writes_numbers_and_a_plot(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tried(script, tmp_path / "runs", tmp_path / "out", monkeypatch)
    assert f"{facts['number']:02}_{facts['name']}" == script.stem
    assert facts["command"].endswith(script.name)
    assert facts["rows"]
    assert facts["differences"]
    assert facts["covers"]
    assert (tmp_path / "out" / f"{script.stem}.png").stat().st_size > 1000
    low = [mean - half for _, mean, half, _ in facts["differences"]]
    high = [mean + half for _, mean, half, _ in facts["differences"]]
    expected = "does not" if any(h < 0 for h in high) else "holds" if all(v > 0 for v in low) else "unclear"
    assert facts["verdict"] == expected
    assert "So it" in capsys.readouterr().out


def test_a_second_run_repeats_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = LABORATORY / "16_x0_beats_eps.py"
    first = tried(script, tmp_path / "a", tmp_path / "out", monkeypatch)
    again = tried(script, tmp_path / "b", tmp_path / "out", monkeypatch)  # trained anew
    kept = tried(script, tmp_path / "b", tmp_path / "out", monkeypatch)  # from what was trained
    assert first["rows"] == again["rows"] == kept["rows"]
    assert first["differences"] == again["differences"] == kept["differences"]
