"""Stage folders: whole or absent, sharded, and refused when damaged."""

import errno
import itertools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2i.core.errors import DataError, UsageError
from t2i.io import files, weights

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def state(num=4, scale=1.0):
    return {f"layer.{i}.weight": torch.arange(100.0).reshape(10, 10) * scale + i for i in range(num)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip(tmp_path):
    values = {**state(), "ids": torch.arange(3), "mask": torch.tensor([True, False]), "scalar": torch.tensor(2.0)}
    weights.save_folder(tmp_path / "a" / "b", {"width": 3, "name": "é"}, values)
    config, loaded = weights.load_folder(tmp_path / "a" / "b")
    assert config == {"width": 3, "name": "é"}
    assert same(loaded, values)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]


def test_tensors_keep_their_dtypes(tmp_path):
    weights.save_folder(tmp_path, {}, {"w": torch.ones(2, dtype=torch.bfloat16), "ids": torch.arange(3)})
    loaded = weights.load_folder(tmp_path)[1]
    assert loaded["w"].dtype == torch.bfloat16
    assert loaded["ids"].dtype == torch.int64


def test_tied_sliced_and_channels_last_tensors(tmp_path):
    w = torch.randn(4, 3, 5, 5)
    values = {"a": w, "tied": w, "slice": w[1:2], "last": w.to(memory_format=torch.channels_last), "t": w[0, 0].T}
    weights.save_folder(tmp_path, {}, values)
    assert same(weights.load_folder(tmp_path)[1], values)
    assert os.path.getsize(tmp_path / "model.safetensors") < 6000


def test_shards_follow_the_transformers_convention(tmp_path):
    weights.save_folder(tmp_path, {}, state(5), max_shard_size=800)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-{i:05d}-of-00003-{index['metadata']['save']}.safetensors" for i in (1, 2, 3)]
    assert sorted(os.listdir(tmp_path)) == ["config.json", *files, "model.safetensors.index.json"]
    assert index["metadata"]["total_size"] == 5 * 400
    assert all(key in load_file(tmp_path / file) for key, file in index["weight_map"].items())
    assert same(weights.load_folder(tmp_path)[1], state(5))


def test_every_shard_is_below_the_default_limit(tmp_path):
    values = {str(i): torch.zeros(1 << 20) for i in range(9)}
    weights.save_folder(tmp_path, {}, values)
    sizes = [p.stat().st_size for p in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 3
    assert max(sizes) < 15 * 2**20 + 4096


@pytest.mark.parametrize(("first", "second"), [(800, 10**6), (10**6, 800), (400, 800)])
def test_saving_again_leaves_no_stale_shards(tmp_path, first, second):
    weights.save_folder(tmp_path, {"v": 1}, state(5), max_shard_size=first)
    others = ["model-ema.safetensors", "model-of-cats.safetensors", "model-a-of-b.safetensors", "modelling.safetensors"]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    weights.save_folder(tmp_path, {"v": 2}, state(5, scale=2), max_shard_size=second)
    config, loaded = weights.load_folder(tmp_path)
    assert config == {"v": 2}
    assert same(loaded, state(5, scale=2))
    assert all((tmp_path / name).exists() for name in others)
    whole, parts = ["model.safetensors"], [p.name for p in tmp_path.glob("model-0*.safetensors")]
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["config.json", *others, *((*parts, "model.safetensors.index.json") if parts else whole)]
    )


def test_metadata_and_names_of_any_script_survive(tmp_path):
    weights.save_folder(tmp_path, {}, {"größe": torch.ones(3, dtype=torch.bfloat16)}, metadata={"made": "„by” 赤"})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made": "„by” 赤"}
    assert weights.load_tensors(tmp_path)["größe"].tolist() == [1, 1, 1]


def test_a_mixture_of_two_saves_is_refused(tmp_path):
    weights.save_folder(tmp_path / "a", {}, state(5), max_shard_size=800)
    weights.save_folder(tmp_path / "b", {}, state(5, scale=2), max_shard_size=800)
    (ours,), (theirs,) = ((tmp_path / name).glob("model-00002-*") for name in "ab")
    os.replace(ours, theirs)
    with pytest.raises(DataError, match=r"model-00002-of-00003-\w+.safetensors belongs to another save"):
        weights.load_folder(tmp_path / "b")


def test_foreign_shards_without_our_mark_load(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert weights.load_tensors(tmp_path).keys() == {"a", "b"}


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in "ab":
        weights.save_folder(
            tmp_path / name, {"x": 1}, state(5), max_shard_size=800, metadata=dict.fromkeys("zyxw", "v")
        )
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["../secret.safetensors", "", "a\0b", "a\ud800", "x" * 300, "..", "/etc/passwd"])
def test_index_must_stay_in_its_folder(tmp_path, name):
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "m").mkdir()
    where = {"metadata": {}, "weight_map": {"a": name}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(where))
    with pytest.raises(DataError, match=r"names no file in its own folder|\.\. is a folder"):
        weights.load_tensors(tmp_path / "m")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none/config.json does not exist"):
        weights.load_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"model.safetensors does not exist"):
        weights.load_folder(tmp_path)


def test_damaged_files_are_named(tmp_path):
    weights.save_folder(tmp_path, {"a": 1}, state())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"model.safetensors is damaged or truncated"):
        weights.load_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"config.json is not valid JSON"):
        weights.load_folder(tmp_path)
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"config.json is a pointer of git-lfs, not its file"):
        weights.load_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"must hold a JSON object, got a list"):
        weights.load_folder(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match="is a pickle file of torch, which may hold code"):
        weights.load_folder(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_lost_shard_is_named(tmp_path):
    weights.save_folder(tmp_path, {}, state(5), max_shard_size=800)
    (lost,) = tmp_path.glob("model-00003-*")
    lost.unlink()
    with pytest.raises(DataError, match=rf"{lost.name} does not exist"):
        weights.load_folder(tmp_path)


def test_writable(tmp_path):
    assert files.writable(tmp_path / "new" / "folder").is_dir()
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        files.writable(tmp_path / "file")
    with pytest.raises(UsageError, match="Not a directory"):
        files.writable(tmp_path / "file" / "below")


def test_a_file_is_promised_without_a_folder_for_it(tmp_path):
    files.writable_file(tmp_path / "new" / "folder" / "a.png", "--out")
    files.room_for(tmp_path / "new" / "folder", 1)
    assert os.listdir(tmp_path) == []
    (tmp_path / "link").symlink_to("nowhere")
    for wrong in ("link", "link/below"):
        with pytest.raises(UsageError, match="link is a file, expected a folder"):
            files.writable_file(tmp_path / wrong / "a.png", "--out")


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "full")


def test_an_output_folder_of_failed_work_goes_with_every_level_that_was_made(tmp_path, monkeypatch):
    @files.output_folder(tmp_path / "was" / "a" / "b")
    def fail(*left):
        for name in left:
            (tmp_path / "was" / "a" / name).write_text("x")
        raise KeyboardInterrupt

    (tmp_path / "was").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path / "was") == []
    with pytest.raises(KeyboardInterrupt):
        fail("log")
    assert os.listdir(tmp_path / "was" / "a") == ["log"]
    with pytest.raises(UsageError, match="is too long"), files.output_folder(tmp_path / "x" / ("y" * 300)):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "NamedTemporaryFile", no_room)
        with pytest.raises(DataError, match="no space left"), files.output_folder(tmp_path / "x" / "y"):
            pass
    assert os.listdir(tmp_path) == ["was"]


@needs_permissions
def test_no_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=f"no permission for {tmp_path}/locked"):
        files.writable(tmp_path / "locked")


_ONE, _MANY = 10**6, 800  # bytes of a shard: one file, or three and their index


@pytest.mark.parametrize(
    ("sizes", "num_written"),
    [
        *(((first, _ONE), 0) for first in (_ONE, _MANY)),
        *(((first, _MANY), written) for first in (_ONE, _MANY) for written in range(4)),
    ],
)
def test_full_disk_keeps_the_earlier_save(tmp_path, monkeypatch, sizes, num_written):
    weights.save_folder(tmp_path, {"v": 1}, state(5), max_shard_size=sizes[0])
    before, calls, real = sorted(os.listdir(tmp_path)), itertools.count(), os.fsync

    def full(file):
        if next(calls) >= num_written:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"no space left to write .*model"):
        weights.save_folder(tmp_path, {"v": 2}, state(5, scale=2), max_shard_size=sizes[1])
    assert weights.load_folder(tmp_path)[0] == {"v": 1}
    assert same(weights.load_folder(tmp_path)[1], state(5))
    monkeypatch.undo()
    weights.save_folder(tmp_path, {"v": 1}, state(5), max_shard_size=sizes[0])
    assert sorted(os.listdir(tmp_path)) == before


def _small_files_only():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_real_write_limit_keeps_the_earlier_file(tmp_path):
    weights.save_folder(tmp_path, {"v": 1}, state())
    code = f"""
import torch
from t2i.io import files
from t2i.io import weights
weights.save_folder({str(tmp_path)!r}, {{"v": 2}}, {{"w": torch.zeros(100_000)}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=_small_files_only)
    assert done.returncode != 0
    assert f"FullDiskError: no space left to write {tmp_path}/model.safetensors" in done.stderr
    assert same(weights.load_folder(tmp_path)[1], state())


def test_a_fingerprint_sees_large_files_in_pieces(tmp_path: Path) -> None:
    stage = tmp_path / "decoder"
    stage.mkdir()
    (stage / "config.json").write_text("{}")
    path = stage / "model.safetensors"
    with open(path, "wb") as file:
        file.truncate(2**26 + 1)  # takes no space on disk
    before = weights.fingerprint({"decoder": stage})
    assert before == weights.fingerprint({"decoder": stage})
    with open(path, "r+b") as file:
        file.seek(2**26)
        file.write(b"x")
    assert weights.fingerprint({"decoder": stage}) != before
    path.write_bytes(b"x" * 100)
    small = weights.fingerprint({"decoder": stage})
    path.write_bytes(b"x" * 50 + b"y" + b"x" * 49)
    assert len({before, small, weights.fingerprint({"decoder": stage})}) == 3
