"""`t2i eval pictures`: sets of pictures against each other, killed, resumed, shared, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import adm
from typer.testing import CliRunner

from t2i.cli.main import app
from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.evals import collect
from t2i.evals.collect import Collection
from t2i.evals.pictures import Asked, pictures, read_prompts, statistics
from t2i.evals.report import Report
from t2i.evals.sets import Drawn, Files, Scenes
from t2i.measures.extractors import open_extractor
from t2i.measures.gaussian import frechet_of_features
from t2i.measures.statistics import Statistics


def folder(root: Path, num: int, seed: int = 0, size: tuple[int, int] = (24, 24), captions: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(num):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise // 2 + rng.integers(0, 128, 3, dtype=np.uint8)).save(root / f"{i:04}.png")
        if captions:
            (root / f"{i:04}.txt").write_text("a red cube\n")
    return root


def measured(report: Report | None) -> dict[str, float]:
    assert report is not None
    return {number["label"]: number["value"] for number in report.facts["numbers"]}


def ask(data: Path | str, **more: Any) -> Asked:
    return Asked(data=str(data), extractor="pixels=4", device="cpu", **more)


def test_two_folders_are_compared_as_their_features_are(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 70), folder(tmp_path / "b", 80, seed=1)
    found = pictures(ask(a), against=str(b), out=tmp_path / "out.json")
    see = open_extractor("pixels=4")

    def features(root: Path) -> torch.Tensor:
        images = [torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in sorted(root.glob("*.png"))]
        return see(torch.stack(images)).pool

    far = measured(found)["Fréchet distance (pixels 4×4)"]
    assert far == pytest.approx(frechet_of_features(features(a), features(b)), rel=1e-6)
    kept = json.loads((tmp_path / "out.json").read_text())
    facts = kept["numbers"][0]["facts"]
    assert (facts["num"], facts["num_reference"], facts["extractor"]) == (70, 80, "pixels 4×4")
    assert kept["asked"]["against"] == str(b)
    assert found is not None
    for said in (f"70 pictures of {a}", f"80 pictures of {b}", "24×24", "resized: bilinear"):
        assert said in found.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out.json"]


def test_statistics_stand_for_their_pictures(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 30), folder(tmp_path / "b", 40, seed=1)
    said = statistics(ask(b), tmp_path / "b.safetensors")
    assert said is not None
    assert "40 pictures of" in said
    by_file = pictures(ask(a), against=str(tmp_path / "b.safetensors"))
    assert measured(by_file) == pytest.approx(measured(pictures(ask(a), against=str(b))))
    with pytest.raises(UsageError, match="not comparable: extractor 'pixels 5×5' and 'pixels 4×4'"):
        pictures(replace(ask(a), extractor="pixels=5"), against=str(tmp_path / "b.safetensors"))


def test_batches_change_nothing(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 50), folder(tmp_path / "b", 50, seed=1)
    one = measured(pictures(ask(a, batch=50), against=str(b)))
    assert measured(pictures(ask(a, batch=7), against=str(b))) == pytest.approx(one, rel=1e-6)


def test_pictures_of_many_sizes_and_modes_are_read(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 5)
    folder(a / "wide", 5, size=(16, 40))
    Image.new("L", (9, 9), 100).save(a / "grey.png")
    Image.new("RGBA", (12, 12), (255, 0, 0, 128)).save(a / "through.png")
    found = pictures(ask(a), metrics=["diversity"])
    assert found is not None
    assert "12 pictures" in found.text
    assert "4 sizes" in found.text
    others = folder(tmp_path / "others", 12, size=(50, 50))
    against = pictures(ask(a), against=str(others), metrics=["kid"])
    assert against is not None
    assert "no size in common, such as 12×12 and 50×50" in against.text
    framed = pictures(ask(a, size=8), metrics=["diversity"])
    assert framed is not None
    assert "8×8" in framed.text


def test_unreadable_pictures_are_counted_and_named(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 6)
    (a / "0002.png").write_bytes(b"no picture")
    found = pictures(ask(a), metrics=["diversity"])
    assert found is not None
    assert "5 pictures" in found.text
    assert "1 more could not be read, such as 0002" in found.text
    for path in a.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="has 0 pictures"):
        pictures(ask(a), metrics=["diversity"])


def test_captions_are_scored_where_there_are_some(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 4, captions=True)
    found = pictures(Asked(data=str(a), device="cpu"))
    assert any(label.startswith("CLIP score") for label in measured(found))
    b = folder(tmp_path / "b", 4)
    with pytest.raises(UsageError, match="clip needs captions"):
        pictures(Asked(data=str(b), device="cpu"), metrics=["clip"])


class Dies(Files):
    """Files of which the process is killed at some picture."""

    at = 10**9

    def load(self, first: int, last: int) -> Any:
        if first >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(first, last)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "PART", 8)
    monkeypatch.setattr(collect, "SAVE_EVERY", 0.0)


def same(a: Statistics, b: Statistics) -> None:
    torch.testing.assert_close(a.moments.mean, b.moments.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.moments.cov, b.moments.cov, rtol=1e-10, atol=1e-12)
    assert torch.equal(a.features, b.features)
    assert a.count == b.count


def test_a_killed_measurement_goes_on_with_any_number_of_processes(tmp_path: Path, small_parts: None) -> None:
    a, work, see = folder(tmp_path / "a", 60), tmp_path / "work", open_extractor("pixels=4")
    whole = Collection(Files(str(a)), see)
    whole.see()
    if (child := os.fork()) == 0:
        dying = Dies(str(a))
        dying.at = 40
        Collection(dying, see, work, batch=4).see()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    kept = sorted(work.glob("*.safetensors"))
    assert kept
    loaded: list[int] = []

    class Counts(Files):
        def load(self, first: int, last: int) -> Any:
            loaded.extend(range(first, last))
            return super().load(first, last)

    jobs = [Collection(Counts(str(a)), see, work, rank=rank, world=3, batch=5) for rank in range(3)]
    for job in jobs[:2]:
        job.see()
    assert not jobs[0].complete()
    jobs[2].see()
    assert jobs[0].complete()
    assert sorted(loaded) == list(range(40, 60))  # nothing that was done is done again
    same(jobs[0].result(), whole.result())


def test_a_folder_of_another_measurement_is_refused(tmp_path: Path, small_parts: None) -> None:
    a, work, see = folder(tmp_path / "a", 12), tmp_path / "work", open_extractor("pixels=4")
    Collection(Files(str(a)), see, work).see()
    with pytest.raises(UsageError, match="extractor: 'pixels 4×4', not 'pixels 5×5'"):
        Collection(Files(str(a)), open_extractor("pixels=5"), work).see()
    with pytest.raises(UsageError, match="framing: 'as they are', not 'center to 16'"):
        Collection(Files(str(a), size=16), see, work).see()
    folder(a, 13)
    with pytest.raises(UsageError, match="pictures: '12', not '13'"):
        Collection(Files(str(a)), see, work).see()


def test_two_processes_share_a_measurement_and_one_writes_it(tmp_path: Path, small_parts: None) -> None:
    a, b, out = folder(tmp_path / "a", 30), folder(tmp_path / "b", 30, seed=1), tmp_path / "two.json"
    alone = measured(pictures(ask(a), against=str(b)))
    assert pictures(ask(a), against=str(b), out=out, rank=0, world=2) is None
    assert not out.exists()
    found = pictures(ask(a), against=str(b), out=out, rank=1, world=2)
    assert measured(found) == pytest.approx(alone, rel=1e-9)
    assert pictures(ask(a), against=str(b), out=out, rank=0, world=2) is None  # one that comes late begins nothing
    assert not (tmp_path / "two.json.parts").exists()
    with pytest.raises(UsageError, match="--out"):
        pictures(ask(a), world=2)


def test_a_kill_of_the_command_loses_nothing(tmp_path: Path) -> None:
    a, out = folder(tmp_path / "a", 600, size=(8, 8)), tmp_path / "out.json"
    code = (
        "import sys, t2i.evals.collect as c; c.PART, c.SAVE_EVERY = 16, 0.0\n"
        "from t2i.cli.main import app; app(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "eval", "pictures", "--data", str(a), "--extractor", "pixels=4"]
    command += ["--metrics", "diversity", "--out", str(out), "--batch", "4", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "out.json.parts" / "pictures"
    until = time.monotonic() + 60
    while not list(work.glob("*.safetensors")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = list(work.glob("*.safetensors"))
    if not out.exists():
        assert done
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["numbers"][0]["facts"]["num"] == 600
    assert measured(Report("", found)) == pytest.approx(measured(pictures(ask(a), metrics=["diversity"])), rel=1e-9)


def test_a_model_draws_what_is_measured_a_few_at_a_time() -> None:
    pipe, asked = adm(), []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(pipe, name)

        def __call__(self, *args: Any, **more: Any) -> Any:
            asked.append((args, more["seed"]))
            return pipe(*args, **more)

    drawn: Any = Drawn(Watched(), 7, seed=5, call={"steps": 1, "stop_after": "decoder"})  # type: ignore[arg-type]
    parts = [drawn.load(0, 3), drawn.load(3, 7)]
    assert asked == [(([0, 1, 2],), 5), (([0, 1, 2, 0],), 8)]  # no more at once than are asked for
    whole = Drawn(pipe, 7, seed=5, call={"steps": 1, "stop_after": "decoder"}).load(0, 7)
    alike = [image for part in parts for image in part.images]
    for a, b in zip(alike, whole.images, strict=True):
        torch.testing.assert_close(a, b, atol=1, rtol=0)
    assert drawn.settings["steps"] == {"decoder": 1}
    with pytest.raises(UsageError, match="reads no prompts"):
        Drawn(pipe, 7, prompts=["a red cube"])


def test_scenes_are_held_out_and_told() -> None:
    part = Scenes(3, size=16, seed=4).load(1, 3)
    assert [image.shape for image in part.images] == [(3, 16, 16)] * 2
    assert part.captions == Scenes(3, seed=4).texts(1, 3)
    assert part.indices == [1, 2]


class Blind:
    name, sha256, resize, dim, num_classes = "blind", "none", "none", 2, None

    def __call__(self, images: torch.Tensor) -> Any:
        from t2i.measures.extractors.base import Features

        return Features(torch.full((len(images), 2), float("nan")))


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    a, empty = folder(tmp_path / "a", 4), tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[type[Exception], str, Any]] = [
        (UsageError, "one of both", lambda: pictures(Asked())),
        (UsageError, "prompts, steps and guidance", lambda: pictures(ask(a, prompts=tmp_path / "p"))),
        (UsageError, "say against what", lambda: pictures(ask(a), metrics=["kid"])),
        (UsageError, "did you mean 'frechet'", lambda: pictures(ask(a), metrics=["frechet2"])),
        (DataError, "holds no pictures", lambda: pictures(ask(empty))),
        (DataError, "holds no pictures", lambda: pictures(ask(a), against=str(empty))),
        (DataError, "nowhere", lambda: pictures(ask(tmp_path / "nowhere"))),
        (DataError, "missing.safetensors", lambda: pictures(ask(a), against=str(tmp_path / "missing.safetensors"))),
        (UsageError, "tells none", lambda: pictures(ask(a), metrics=["is"])),
        (UsageError, "ends in .safetensors", lambda: statistics(ask(a), tmp_path / "a.json")),
        (NonFiniteError, "features of picture 0", lambda: Collection(Files(str(a)), Blind()).see()),
    ]
    for kind, said, do in cases:
        with pytest.raises(kind) as error:
            do()
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    for text, said in (("\n\n", "holds no prompts"), (b"\xff\xfe\xfa", "not UTF-8")):
        path = tmp_path / "prompts.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=said):
            read_prompts(path)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "one of both"),
        (["--data", "shapes", "--model", "shapes"], 2, "one of both"),
        (["--model", "shapess"], 2, "shapes"),
        (["--data", "shapes", "--num", "4", "--extractor", "inceptio=x"], 2, "did you mean 'inception'"),
        (["--data", "shapes", "--num", "4", "--extractor", "inception=/nowhere.pth"], 3, "/nowhere.pth"),
        (["--data", "shapes", "--crop-policy", "none"], 2, "center, random or pad"),
        (["--data", "shapes", "--metrics", ","], 2, "names none"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], code: int, said: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "t2i", "eval", "pictures", *arguments], capture_output=True, text=True
    )
    assert found.returncode == code
    assert said in found.stderr
    assert "Traceback" not in found.stderr


def test_the_command_prints_what_was_measured(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        app, ["eval", "pictures", "--data", "shapes", "--num", "6", "--against", "shapes", "--extractor", "pixels=4"]
    )
    assert found.exit_code == 0, found.output
    assert "6 pictures of shapes" in found.output
    assert "are no more than the 48 features" in found.output
