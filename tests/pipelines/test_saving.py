"""A model is saved as a whole: whatever fails or is killed, a folder holds one save or is refused."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import adm, classifier

from t2i import Pipeline
from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.io import weights
from t2i.io.lock import sole_writer
from t2i.pipelines.adm import ADM


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ADM, ADM, Path]:
    """An earlier model, in a folder, and the one that shall replace it, whose stages have other weights."""
    old, new = adm(classifier=classifier()), adm(classifier=classifier())
    with torch.no_grad():
        for part in new.parts.values():
            for parameter in part.parameters():
                parameter.add_(1)
    folder = tmp_path_factory.mktemp("models") / "old"
    old.save_pretrained(folder)
    (folder / "classifier" / "notes.txt").write_text("mine")
    new.save_pretrained(folder.with_name("new"))
    return old, new, folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def opened(folder: Path) -> str:
    return Pipeline.from_pretrained(folder, device="cpu").weights


def test_a_disk_that_is_full_at_any_write_leaves_the_earlier_model_whole(
    models: tuple[ADM, ADM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, source = models
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    real = os.fsync
    for num_written in itertools.count():
        calls = itertools.count()

        def full(file: int, calls: itertools.count = calls, num_written: int = num_written) -> None:
            if next(calls) >= num_written:
                raise OSError(28, "No space left on device")
            real(file)

        monkeypatch.setattr(os, "fsync", full)
        try:
            new.save_pretrained(folder)
        except FullDiskError as error:
            assert str(error).startswith(f"no space left to write {folder}/")  # noqa: PT017
            assert ".tmp" not in str(error)  # noqa: PT017
        else:
            break
        assert opened(folder) == old.weights
        assert listing(folder) == listing(source)
    assert num_written == 5  # two files of each stage, and the index
    assert opened(folder) == new.weights != old.weights
    assert (folder / "classifier" / "notes.txt").read_text() == "mine"
    assert listing(folder) == listing(source)


def killed(work: Callable[[], None], at: int) -> bool:
    """Do some work in a process that is killed before it moves or removes its n-th file; False if it ended before."""
    if (pid := os.fork()) == 0:
        left = itertools.count()

        def deadly(real: Callable) -> Callable:
            def once(*args: object, **kwargs: object) -> object:
                if next(left) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return once

        os.replace, os.unlink = deadly(os.replace), deadly(os.unlink)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


def test_a_save_that_is_killed_anywhere_leaves_one_model_or_a_folder_that_is_refused(
    models: tuple[ADM, ADM, Path], tmp_path: Path
) -> None:
    old, new, source = models
    seen = set()
    for at in itertools.count():
        folder = tmp_path / str(at)
        shutil.copytree(source, folder)
        if not killed(lambda folder=folder: new.save_pretrained(folder), at):
            break
        try:
            seen.add(opened(folder))
        except DataError as error:
            assert "saving this model was cut off" in str(error)  # noqa: PT017
            seen.add("refused")
        new.save_pretrained(folder)
        assert opened(folder) == new.weights
        assert listing(folder) == listing(source)
    assert seen in ({old.weights, "refused"}, {old.weights, "refused", new.weights})
    assert at > 10


def test_a_model_that_has_no_room_is_refused_before_it_is_written(
    models: tuple[ADM, ADM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(FullDiskError, match=r"no space left in .*/model: \d+\.\d MB are needed, 0\.0 MB are free"):
        models[1].save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_two_that_save_into_one_folder_are_not_mixed(models: tuple[ADM, ADM, Path], tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(UsageError, match="is being written by process"):
        models[0].save_pretrained(tmp_path)


def test_a_stage_of_another_config_is_replaced_with_its_config(tmp_path: Path) -> None:
    weights.save_folder(tmp_path, {"v": 1}, {"w": torch.zeros(3)})
    assert killed(lambda: weights.save_folder(tmp_path, {"v": 2}, {"w": torch.ones(3)}), 6)
    with pytest.raises(DataError, match=r"config.json does not exist"):
        weights.load_folder(tmp_path)
    weights.save_folder(tmp_path, {"v": 2}, {"w": torch.ones(3)})
    assert weights.load_folder(tmp_path)[1]["w"].tolist() == [1, 1, 1]
