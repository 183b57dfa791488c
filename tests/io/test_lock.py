"""One writer at a time, and nothing of killed ones stays."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from t2i.core.errors import DataError, UsageError
from t2i.io.lock import LOCK, sole_writer


def hold(folder, ready):
    with sole_writer(folder, "trained"):
        if os.fork() == 0:  # as a loader process, which outlives it
            time.sleep(60)
        ready.set()
        time.sleep(60)


def test_a_second_writer_is_told_who_was_first(tmp_path):
    with (
        sole_writer(tmp_path, "trained", "stop it"),
        pytest.raises(UsageError) as caught,
        sole_writer(tmp_path, "trained", "stop it"),
    ):
        pass
    who = rf"process {os.getpid()} on {socket.gethostname()} since \d+-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"{tmp_path} is being trained by {who}; stop it", str(caught.value))
    assert os.listdir(tmp_path) == []
    with sole_writer(tmp_path):
        assert os.listdir(tmp_path) == [LOCK]


def test_the_lock_of_a_killed_process_does_no_harm_even_while_its_children_live(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    with pytest.raises(UsageError, match=f"is being written by process {process.pid} on "), sole_writer(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / LOCK).exists()
    with sole_writer(tmp_path):
        pass
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".t2i-a.png.999999999.tmp").write_text("of a process on another machine")
    with sole_writer(tmp_path) as locked:
        assert not locked
    assert caplog.text.count("cannot be locked (No locks available)") == 1
    assert os.listdir(tmp_path) == [".t2i-a.png.999999999.tmp"]


def test_what_a_link_in_place_of_the_lock_leads_to_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match=f"{LOCK}: Too many levels of symbolic links"), sole_writer(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_temporary_files_of_dead_processes_go_and_those_of_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".t2i-a.png.{dead.pid}.tmp", f".t2i-x.{dead.pid}.tmp", ".t2i-huge.999999999.tmp"]
    earlier = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "run.json", "step-000100.png"]
    gone += [".t2i-abc_1234.tmp", *(f".{name}.{dead.pid}.tmp" for name in (*earlier, "metrics.jsonl"))]
    stay = [f".t2i-a.png.{os.getpid()}.tmp", "a.tmp", ".a.tmp", ".a.1x.tmp"]
    stay += [".mine.12.tmp", f".mine.{dead.pid}.tmp", f".holiday.png.{dead.pid}.tmp"]
    for name in gone + stay:
        (tmp_path / name).write_text("x")
    (tmp_path / f".t2i-clip.{dead.pid}.tmp").mkdir()
    (tmp_path / f".t2i-clip.{dead.pid}.tmp" / "model.safetensors").write_text("x")
    with sole_writer(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted([LOCK, *stay])
