"""Long work is never silent: a line every so often, a bar on a terminal."""

import io
import sys
import time
from functools import partial

import pytest

from t2i.cli.options import never_silent
from t2i.core.progress import Alive, bar, duration


def test_long_work_is_told_until_it_ends_or_something_else_is_said() -> None:
    lines: list[str] = []
    with Alive("reading", lines.append, every=0.02) as alive:
        time.sleep(0.1)
        alive.did("writing")
        time.sleep(0.1)
    num = len(lines)
    assert num >= 2
    assert lines[0].startswith("reading: 0.0")
    assert lines[-1].startswith("writing: 0.0")
    assert all(line.endswith(" s so far") for line in lines)
    time.sleep(0.05)
    assert len(lines) == num


def test_short_work_says_nothing() -> None:
    lines: list[str] = []
    with Alive("reading", lines.append):
        pass
    assert not lines


def test_a_bar_without_a_terminal_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar(total=3, unit="img", desc="out") as quick:
        quick.update(3)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr("t2i.core.progress.EVERY", 0.01)
    with bar(total=3, unit="img", desc="out") as slow:
        for _ in range(3):
            time.sleep(0.03)
            slow.update(1)
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) >= 2
    assert "\r" not in sys.stderr.getvalue()
    assert lines[-1].startswith("out: 100%")


def test_a_command_is_never_silent_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("t2i.cli.options.Alive", partial(Alive, every=0.02))
    with never_silent("converting"):
        time.sleep(0.1)
    assert "converting: 0.0" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with never_silent("converting"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (3.21, "3.2 s"), (45, "45 s"), (130, "2 min"), (8640, "2.4 h"), (471600, "131 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
