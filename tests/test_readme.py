"""What README, CONTRIBUTING and docs/ say holds: commands, code, excerpts, paths, names, links and the tree."""

import ast
import io
import re
import shlex
import sys
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import typer
from PIL import Image

import t2i.stages
from t2i.cli.main import app, main
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import load_run, train
from t2i.stages.registry import STAGES, load_stage

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "configs" / "README.md", *sorted((ROOT / "weights").glob("*/README.md"))]
QUICK = ["train.steps=1", "train.batch_size=2", "train.sample_every=0", "data.num_workers=0", "data.val_fraction=0"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """What follows the language in the first line of fenced blocks, such as a path, and what is in them."""
    for info, body in re.findall(r"^```(.*)\n([\s\S]*?)^```$", page.read_text(), re.M):
        first, _, rest = info.partition(" ")
        if first == language:
            yield rest.strip(), body


def spans(page: Path) -> list[str]:
    """Inline code, also over two lines."""
    prose = re.sub(r"^```.*\n[\s\S]*?^```$", "", page.read_text(), flags=re.M)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> list[str]:
    """Every command line of a page, whole or as the name of a command."""
    lines = [line for _, body in blocks(page, "bash") for line in body.replace("\\\n", " ").splitlines()]
    found = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [c for c in [*found, *spans(page)] if re.match(r"(t2i|python|accelerate launch) ", c) and "…" not in c]


def excerpt_line(line: str) -> str:
    return line.strip().split("  # ")[0].rstrip()


def run(monkeypatch: pytest.MonkeyPatch, command: str, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(command) + list(more))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, command


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 250


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_commands_exist_and_take_their_arguments(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "python":
            script = (ROOT / words[1]).read_text()
            assert all(word in script for word in words[2:] if word.startswith("--")), command
            continue
        if words[0] == "accelerate":
            words = words[words.index("-m") + 1 :]
        parsed(words[1:])
        if words[1] == "train" and len(words) > 2:
            load_run(words[2], [word for word in words[3:] if not word.startswith("--")])


def parsed(words: list[str]) -> None:
    """Words after `t2i` are those of a command; its name alone will do."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    if words:
        try:
            command.make_context(command.name, list(words))
        except Exception as error:  # of whichever option parser typer brings
            pytest.fail(f"{command.name} {words}: {getattr(error, 'message', error)}")


@every_page
def test_paths_and_names_in_the_text_are_there(page: Path) -> None:
    missing = []
    for span in spans(page):
        if re.fullmatch(r"(t2i|pipelines|tests|configs|weights|examples|docs)/[\w./-]*", span):
            if not (ROOT / span).exists() and "thumbnail" not in span:  # the stage that CONTRIBUTING adds
                missing.append(span)
        elif re.fullmatch(r"t2i(\.\w+)+", span) and not is_name(span):
            missing.append(span)
    assert missing == []


def is_name(dotted: str) -> bool:
    """Whether `t2i.a.b.C.d` is a module, or something in one."""
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@every_page
def test_excerpts_stand_in_the_code(page: Path) -> None:
    """A block that names a file shows lines of it, in their order; `...` and `…` leave some out."""
    for where, body in blocks(page, "python"):
        if not where or not (ROOT / where).is_file():
            continue
        rest = [excerpt_line(line) for line in (ROOT / where).read_text().splitlines()]
        for line in map(excerpt_line, body.splitlines()):
            if line in ("", "...", "…"):
                continue
            assert line in rest, f"{page.name} shows what {where} does not have, or not there: {line}"
            rest = rest[rest.index(line) + 1 :]


@pytest.mark.filterwarnings("ignore:the model does not know")
@every_page
def test_code_runs(page: Path, pipe: DALLE2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks that name no file, one after the other, on small untrained models."""
    if page.name == "CONTRIBUTING.md":
        pytest.skip("its blocks are files of a stage, see below")
    monkeypatch.chdir(tmp_path)
    made = {"glide": small.glide, "dalle3": small.dalle3}

    def opened(name: object, **_: object) -> Pipeline:
        return next((make() for kind, make in made.items() if kind in str(name)), pipe)

    monkeypatch.setattr(Pipeline, "from_pretrained", opened)
    square = Image.new("RGB", (32, 32), "red")
    names: dict[str, Any] = {
        "image": square,
        "other": Image.new("RGB", (32, 32), "blue"),
        "photo": square,
        "pictures": [Image.new("RGB", (32, 32), (12 * i, 255 - 12 * i, 7 * i)) for i in range(20)],
        "mask": Image.new("L", (32, 32), 255),
    }
    for where, body in blocks(page, "python"):
        if not where:
            exec(compile(ast.parse(body), page.name, "exec"), names)


def take_photos(size: tuple[int, int], what: str) -> None:
    """A folder `photos` of four captioned pictures, here."""
    Path("photos").mkdir()
    for i in range(4):
        Image.new("RGB", size, (60 * i, 90, 30)).save(f"photos/{i}.jpg")
        Path(f"photos/{i}.txt").write_text(f"my {i + 2} {what}")


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_train_each_stage_on_your_own_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    take_photos((300, 280), "cats\nand a dog")
    page = (ROOT / "docs" / "training.md").read_text()
    trainings = re.findall(r"^t2i train configs/.*$", page.partition("## Your own pictures")[0], re.M)
    assert len(trainings) == 5
    for training in trainings:
        run(monkeypatch, training, *QUICK)
    [assemble] = re.findall(r"`(t2i assemble runs/my-model [^`]*)`", page)
    run(monkeypatch, assemble)
    [generate] = re.findall(r"`(t2i generate \"a cat\"[^`]*)`", page)
    run(monkeypatch, generate, "--steps", "1")
    assert Image.open("out.png").size == (1024, 1024)


@pytest.mark.slow
def test_bundled_networks_are_fine_tuned_on_your_own_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    take_photos((90, 80), "sleepy penguins")
    page = (ROOT / "docs" / "training.md").read_text().partition("## Your own pictures")[2].partition("\n## ")[0]
    lines = re.findall(r"^t2i .*$", page, re.M)
    assert len(lines) == 7
    for line in lines:
        more = {"train": QUICK, "assemble": (), "generate": ("--steps", "1")}[line.split()[1]]
        run(monkeypatch, line, *more)
    assert Path("runs/decoder/samples").is_dir()
    assert Image.open("penguin.png").size == (64, 64)


@pytest.mark.filterwarnings("ignore:the model does not know")
def test_the_stage_of_contributing_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two frozen neighbours, two optimisers, vectors beside the pictures; stopped, resumed, loaded."""
    page = ROOT / "CONTRIBUTING.md"
    written = [block for kind in ("python", "yaml") for block in blocks(page, kind) if "thumbnail" in block[0]]
    assert len(written) == 5
    for where, body in written:
        path = tmp_path / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    monkeypatch.setattr(t2i.stages, "__path__", [*t2i.stages.__path__, str(tmp_path / "t2i" / "stages")])
    monkeypatch.setitem(STAGES, "thumbnail", "t2i.stages.thumbnail")
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "shards" / "0.tar", dim=128)
    config, quick = tmp_path / "configs" / "shapes" / "thumbnail.yaml", [*QUICK[1:], "train.save_every=1"]
    quick += ["data.source=shards", "train.out=out", "train.device=cpu", "train.ema=[0.5]"]
    train(config, [*quick, "train.steps=1"])
    result = train(config, [*quick, "train.steps=2"])
    assert result.step == 2
    assert {"loss", "cosine", "discriminator/loss", "discriminator/grad_norm"} <= result.metrics.keys()
    checkpoint = {path.name for path in (tmp_path / "out" / "checkpoints" / "step-000002").iterdir()}
    assert {"phase-discriminator.safetensors", "optimizer-discriminator.safetensors"} <= checkpoint
    assert load_stage("out", expect="thumbnail").config.dim == 128


def write_shard(path: Path, dim: int) -> None:
    """Four pictures with labels and vectors."""
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            picture, vector = io.BytesIO(), io.BytesIO()
            Image.new("RGB", (32, 32), (60 * i, 90, 30)).save(picture, "PNG")
            np.save(vector, rng.standard_normal(dim).astype(np.float32))
            for kind, data in {"png": picture.getvalue(), "z.npy": vector.getvalue(), "cls": b"%d" % i}.items():
                member = tarfile.TarInfo(f"{i}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_the_tree_has_the_name_of_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"\w+\.py|\w+(?=/)", tree))
    files = [p.relative_to(ROOT) for top in ("t2i", "pipelines") for p in (ROOT / top).rglob("*.py")]
    lacking = {str(p) for p in files if p.name != "__init__.py" and not {p.name, *p.parts[:-1]} <= named}
    assert not lacking
    there = {name for p in files for name in (p.name, *p.parts[:-1])}
    there |= {path.name for top in (ROOT, ROOT / "configs") for path in top.iterdir()}
    assert not named - there


def test_the_glossary_is_in_order() -> None:
    terms = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.M)
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.casefold)
