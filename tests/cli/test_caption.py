"""`t2i caption` from the command line."""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, chatting
from files_of_data import make_folder
from tiny_captioners import git
from typer.testing import CliRunner, Result

from t2i.cli.caption import processes, prompts_of
from t2i.cli.main import app
from t2i.core.errors import DataError, FullDiskError, T2IError, UsageError
from t2i.data.caption.captioner import PROMPTS
from t2i.data.caption.job import FLUSH
from t2i.data.caption.store import read_rows


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.0)
    with chatting() as state:
        yield state


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["caption", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, T2IError | SystemExit):
        raise result.exception
    return result


def test_a_server_captions_a_folder(server: ChatServer, tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 3), tmp_path / "out"
    result = run(folder, "--with", server.url, "--out", out, "--kinds", "short", "--prompt", "what is it?")
    assert result.output == "3 pictures captioned, 0 were there\n"
    assert {request["messages"][0]["content"][1]["text"] for request in server.asked} == {"what is it?"}
    rows = read_rows(out / "pictures.captions.parquet")
    assert [row["short"] for row in rows] == ["a red cube"] * 3
    assert json.loads(rows[0]["model"]) == {"short": f"{server.url}#tiny"}
    assert json.loads(rows[0]["settings"])["short"]["prompt"] == "what is it?"


def test_a_server_that_is_down_ends_it_in_one_line(server: ChatServer, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    server.statuses = [500] * 99
    error = run(folder, "--with", f"{server.url}#tiny", "--out", tmp_path / "out").exception
    assert isinstance(error, T2IError)
    assert "wrote no caption for 3 pictures in a row" in str(error)
    assert "500 Internal Server Error" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(("writes", "file"), [(0, "jsonl"), (1, "parquet")])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, file: str
) -> None:
    out, calls, fsync = tmp_path / "out", itertools.count(), os.fsync
    command = (make_folder(tmp_path / "pictures", 3), "--with", server.url, "--out", out, "--kinds", "short")

    def full(descriptor: int) -> None:
        if next(calls) >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = run(*command).exception
    assert isinstance(error, FullDiskError)
    assert str(error) == f"no space left to write {out}/pictures.captions.{file}"
    assert [path.name for path in out.iterdir()] == ["pictures.captions.jsonl"], "nothing half"
    assert run(*command).output == "0 pictures captioned, 3 were there\n"
    assert len(server.asked) == 3, "what was written counts"
    assert [path.name for path in out.iterdir()] == ["pictures.captions.parquet"]


def test_a_model_of_transformers_captions_a_folder(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 3), tmp_path / "out"
    model = git(tmp_path / "git")
    how = ("--kinds", "short", "--max-length", 4, "--device", "cpu", "--dtype", "bfloat16")
    result = run(folder, "--with", model, "--out", out, *how)
    assert result.output.endswith("3 pictures captioned, 0 were there\n")
    rows = read_rows(out / "pictures.captions.parquet")
    assert all(row["short"] for row in rows)
    assert json.loads(rows[0]["settings"])["short"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kinds", "shrt"], "did you mean 'short'"),
        (["--kinds", ","], "no kind of captions"),
        (["--beams", 2, "--temperature", 1], "num_beams=2 draws nothing"),
        (["--beams", 2], "an endpoint takes no such setting"),
        (["--top-p", 0.5], "set temperature"),
        (["--count", 4], "--count=4 is for shapes"),
        (["--prompt", "what?"], "--prompt is for which kind"),
        (["--prompt", "short="], "--prompt is empty"),
        (["--prompt", "short=a", "--prompt", "short=b"], "--prompt: short captions have two prompts"),
        (["--kinds", "short", "--prompt", "descriptive=a"], "--prompt: descriptive captions are not in --kinds"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'"),
        (["--dtype", "bfloat16"], "--dtype is for models of transformers; a server has its own"),
        (["--min-length", 310], "min_length=310 leaves no room for the end in max_length=300"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: list, message: str) -> None:
    folder = make_folder(tmp_path / "pictures", 1)
    error = run(folder, "--with", "http://127.0.0.1:9/v1#x", "--out", tmp_path / "out", *options).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "out").exists()


def test_a_batch_has_no_more_pictures_than_a_job_takes(tmp_path: Path) -> None:
    result = run(make_folder(tmp_path / "pictures", 1), "--with", "x", "--out", tmp_path / "out", "--batch", FLUSH + 1)
    assert result.exit_code == 2
    assert "--batch" in result.output


def test_prompts_are_of_a_kind() -> None:
    assert prompts_of(None, ["short"]) is None
    assert prompts_of(["a=b?"], ["descriptive"]) == {**PROMPTS, "descriptive": "a=b?"}
    assert prompts_of(["short=x", "descriptive=y"], ["short", "descriptive"]) == {"short": "x", "descriptive": "y"}


def test_launchers_say_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes("cpu") == (0, 1, "cpu")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes("cpu") == (1, 2, "cpu")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UsageError, match="RANK=2, WORLD_SIZE=2"):
        processes("cpu")


def test_a_model_gives_its_captioners(tmp_path: Path) -> None:
    result = run("shapes", "--count", 2, "--with", "shapes-dalle3", "--size", 64, "--device", "cpu", "--out", tmp_path)
    assert result.exit_code == 0, result.exception
    assert all(row["short"] and row["descriptive"] for row in read_rows(tmp_path / "shapes-00000.captions.parquet"))
    for name in ("shapes", "weights/shapes-dalle3/captioner"):
        error = run("shapes", "--count", 2, "--with", name, "--out", tmp_path / "none").exception
        assert isinstance(error, DataError)
        assert str(error) == f"--with {name} holds no captioner of short and descriptive captions"
