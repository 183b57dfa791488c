"""Waiting threads sleep in the command line, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from t2i.core.threads import QUIET, wait_quietly


def test_it_is_said_where_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    wait_quietly()
    assert {name: os.environ[name] for name in QUIET} == QUIET


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    before = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | {name: value}
    monkeypatch.setattr(os, "environ", dict(before))
    wait_quietly()
    assert os.environ == before


def test_the_command_line_says_it_before_torch_is_imported() -> None:
    script = (
        "import os, sys\n"
        "import t2i.cli.main as main\n"
        "assert 'torch' not in sys.modules\n"
        "main.app = lambda **_: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)\n"
        "main.main()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["PASSIVE", "False"], done.stderr
