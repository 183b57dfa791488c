"""Ctrl-C is one line and exit code 130, whenever it comes."""

import subprocess
import sys
from pathlib import Path

import pytest

from t2i.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("imported", ["typer", "t2i.cli.generate", "t2i.core.threads"])
def test_an_interrupt_while_it_is_imported(imported: str) -> None:
    code = f"""
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == {imported!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from t2i.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("t2i.pipeline.base.Pipeline.from_pretrained", interrupted)
    monkeypatch.setattr("sys.argv", ["t2i", "generate", "a red cube"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
