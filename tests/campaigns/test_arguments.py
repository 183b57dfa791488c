"""A small form of the campaign of random arguments, and a long one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "arguments.py"


def campaign(num: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--num", str(num)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "refused" in done.stdout
    assert "done" in done.stdout


def test_random_arguments_are_done_or_refused_in_one_line(tmp_path: Path) -> None:
    campaign(40, tmp_path)


@pytest.mark.slow
def test_ten_thousand_random_arguments_are_done_or_refused_in_one_line(tmp_path: Path) -> None:
    campaign(10_000, tmp_path)
