"""What the README says works, as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from t2i.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
QUICK = ["train.steps=1", "train.batch_size=2", "train.sample_every=0", "data.num_workers=0", "data.val_fraction=0"]


def run(monkeypatch: pytest.MonkeyPatch, command: str, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(command) + list(more))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, command


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_train_each_stage_on_your_own_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(4):
        Image.new("RGB", (300, 280), (60 * i, 90, 30)).save(f"photos/{i}.jpg")
        Path(f"photos/{i}.txt").write_text(f"my {i + 2} cats\nand a dog")
    trainings = re.findall(r"^t2i train configs/.*$", README, re.M)
    assert len(trainings) == 5
    for training in trainings:
        run(monkeypatch, training, *QUICK)
    [assemble] = re.findall(r"`(t2i assemble my-model [^`]*)`", README)
    run(monkeypatch, assemble)
    [generate] = re.findall(r"`(t2i generate \"a cat\"[^`]*)`", README)
    run(monkeypatch, generate, "--steps", "1")
    assert Image.open("out.png").size == (1024, 1024)


def test_the_tree_has_the_name_of_every_file() -> None:
    named = set(re.findall(r"\w+\.py|\w+(?=/)", README.partition("## The tree")[2].partition("## Licence")[0]))
    files = [p.relative_to(ROOT) for top in ("t2i", "pipelines") for p in (ROOT / top).rglob("*.py")]
    lacking = {str(p) for p in files if p.name != "__init__.py" and not {p.name, *p.parts[:-1]} <= named}
    assert not lacking
