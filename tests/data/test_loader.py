"""Samples are functions of (seed, position); folders and shards load without surprises; bad samples are counted."""

import errno
import io
import itertools
import json
import logging
import os
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from files_of_data import make_folder, make_shard, make_tar, picture
from PIL import Image

from t2i.core.config import load
from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.core.seed import Streams, mix
from t2i.data import shapes
from t2i.data.config import DataConfig
from t2i.data.folder import FolderSource
from t2i.data.loader import Loader, NothingHeldOutError
from t2i.data.order import Mixture, permute
from t2i.data.shapes.write import write_shards
from t2i.data.shards import ShardSource, expand
from t2i.data.source import BadSample, decode, pick_caption
from t2i.io.decode import _say


def config(source, **changes):
    return DataConfig(source=source, **{"size": 8, "num_workers": 0, "val_fraction": 0.0, **changes})


def loader(source, batch_size=4, seed=0, **changes):
    where = {k: changes.pop(k) for k in ("rank", "world", "accumulate", "start", "split", "bad_log") if k in changes}
    return Loader(config(source, **changes), seed=seed, batch_size=batch_size, **where)


def take(batches, count):
    return list(itertools.islice(batches, count))


def all_of(name, batches):
    return [value for batch in batches for value in batch[name]]


def keys(batches):
    return all_of("key", batches)


# Order


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1000])
def test_permute_is_a_permutation(length):
    assert sorted(permute(i, length, seed=5) for i in range(length)) == list(range(length))


def test_permutations_differ_by_seed_and_mix_well():
    a, b = ([permute(i, 1000, seed) for i in range(1000)] for seed in (0, 1))
    assert a != b
    assert abs(np.corrcoef(a, range(1000))[0, 1]) < 0.1
    assert permute(10**12, 10**13, 0) < 10**13


def test_mixture_draws_by_weight_and_counts_exactly():
    mixture = Mixture([3, 1, 0.004], seed=1)
    seen = Counter()
    for position in range(2500):
        source, before = mixture.at(position)
        assert before == seen[source]
        seen[source] += 1
    assert seen[0] / seen[1] == pytest.approx(3, rel=0.05)
    assert 2 <= seen[2] <= 4


def test_a_source_of_a_tiny_weight_has_its_turn():
    weights = [1, 1e-6, 1e-6, 2000]
    mixture = Mixture(weights, seed=1)
    seen = Counter(mixture.at(position)[0] for position in range(2 * len(mixture.pattern)))
    assert (seen[0], seen[1], seen[2]) == (2, 2, 2)
    assert seen[3] == pytest.approx(2000, rel=0.01)
    assert Counter(Mixture([1.0] * 1500, seed=1).pattern) == dict.fromkeys(range(1500), 1)


# Positions


def test_an_epoch_has_every_sample_once_and_the_next_another_order(tmp_path):
    folder = make_folder(tmp_path / "a", 20)
    seen = keys(take(loader(str(folder)), 10))
    assert sorted(seen[:20]) == sorted(seen[20:]) == [f"{i:03d}" for i in range(20)]
    assert seen[:20] != seen[20:]
    assert seen != keys(take(loader(str(folder), seed=1), 10))


def test_two_processes_and_micro_batches_see_the_batch_of_one(tmp_path):
    folder = str(make_folder(tmp_path / "a", 30))
    whole = take(loader(folder, 8), 5)
    ranks = [take(loader(folder, 8, rank=r, world=2, accumulate=2), 10) for r in range(2)]
    for step, batch in enumerate(whole):
        parts = [ranks[r][2 * step + m] for m in range(2) for r in range(2)]
        assert keys(parts) == batch["key"]
        assert all_of("seed", parts) == batch["seed"]
        assert torch.equal(torch.cat([p["image"] for p in parts]), batch["image"])


def test_a_resume_continues_exactly_also_with_workers_and_another_batch_size(tmp_path):
    folder = str(make_folder(tmp_path / "a", 30))
    whole = take(loader(folder, 4), 12)
    for workers in (0, 2):
        rest = take(loader(folder, 8, start=16, num_workers=workers), 4)
        assert keys(rest) == keys(whole[4:])
        assert all_of("seed", rest) == all_of("seed", whole[4:])
        assert torch.equal(torch.cat([b["image"] for b in rest]), torch.cat([b["image"] for b in whole[4:]]))


def test_batches_hold_what_tasks_expect(tmp_path):
    batch = take(loader(str(make_folder(tmp_path / "a"))), 1)[0]
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    for image, caption, key in zip(batch["image"], batch["caption"], batch["key"], strict=True):
        assert caption == f"picture {int(key)}"
        assert torch.allclose(image, torch.full((3, 8, 8), int(key) / 127.5 - 1))
    assert len(set(batch["seed"])) == 4


def test_mixed_sources(tmp_path):
    a, b = make_folder(tmp_path / "a", 10), make_folder(tmp_path / "b", 10, start=100)
    seen = keys(take(loader([{"src": str(a), "weight": 3}, {"src": str(b)}]), 500))
    share = sum(int(key) < 100 for key in seen) / len(seen)
    assert share == 0.75
    assert len(set(seen)) == 20


def test_validation_split_is_by_key(tmp_path):
    folder = str(make_folder(tmp_path / "a", 60))
    train, val = (set(keys(take(loader(folder, split=s, val_fraction=0.3), 40))) for s in ("train", "val"))
    assert not train & val
    assert len(train | val) == 60
    assert 8 <= len(val) <= 28
    make_folder(tmp_path / "a", 30, start=60)
    assert val <= set(keys(take(loader(folder, split="val", val_fraction=0.3), 40)))


def test_a_few_files_are_all_trained_on_and_none_is_called_held_out(tmp_path):
    folder = str(make_folder(tmp_path / "a", 5, start=5))  # none of their names falls into 2 %
    default = DataConfig(source=folder, size=8, num_workers=0)
    assert default.val_fraction == 0.02
    assert len(set(keys(take(Loader(default, seed=0, batch_size=5), 1)))) == 5
    with pytest.raises(NothingHeldOutError, match=r"val_fraction 0.02 holds out no sample of .*a"):
        Loader(default, seed=0, batch_size=5, split="val")
    with pytest.raises(NothingHeldOutError):
        loader(folder, split="val")
    assert len(set(keys(take(loader(folder, 5, val_fraction=0.999999), 1)))) == 5  # training comes first
    many = make_folder(tmp_path / "b", 60)
    mixture = [{"src": folder}, {"src": str(many)}]
    assert {int(key) for key in keys(take(loader(mixture, split="val", val_fraction=0.1), 20))} <= set(range(60))


def test_uneven_batches_are_refused(tmp_path):
    with pytest.raises(UsageError, match="batch_size 6 must be a multiple of 2 processes × accumulate 2"):
        loader(str(make_folder(tmp_path / "a")), 6, world=2, accumulate=2)


def test_waiting_time_is_measured(tmp_path):
    data = loader(str(make_folder(tmp_path / "a")))
    take(data, 3)
    assert data.seconds_waited > 0


# Folders


def test_folders_are_recursive_and_lines_are_captions(tmp_path):
    make_folder(tmp_path / "a" / "deep" / "er", 1)
    (tmp_path / "a" / "deep" / "er" / "000.txt").write_text("one\n\ntwo\n three \n")
    source = FolderSource(tmp_path / "a", 8)
    assert source.keys == ["deep/er/000"]
    captions = {source.load(0, Streams([seed]))["caption"] for seed in range(30)}
    assert captions == {"one", "two", "three"}


def test_an_empty_caption_is_unconditional(tmp_path):
    make_folder(tmp_path / "a", 1)
    (tmp_path / "a" / "000.txt").write_text("")
    assert FolderSource(tmp_path / "a", 8).load(0, Streams([0]))["caption"] == ""


def test_folders_without_pictures_or_captions_fail_loudly(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        loader(str(tmp_path))
    (tmp_path / "a.png").write_bytes(picture(1))
    with pytest.raises(DataError, match=r"holds 1 pictures but no captions: expected a.txt"):
        loader(str(tmp_path))


def test_a_folder_below_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Root may read all, so the system's answer to others is put in its place."""
    locked, scandir = str(make_folder(tmp_path / "b" / "locked", 1)), os.scandir
    make_folder(tmp_path / "a", 1)

    def refused(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=rf"^{locked}: Permission denied$"):
        FolderSource(tmp_path, 8)


def test_crops_are_windows_of_the_resized_picture(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 1, 3))
    (tmp_path / "a.png").write_bytes(b"")
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("ramp")
    source = FolderSource(tmp_path, 32, 8)
    lefts = set()
    for seed in range(40):
        image = source.load(0, Streams([seed]))["image"]
        assert image.shape == (3, 8, 8)
        columns = ((image[0, 0] + 1) * 127.5 / 4).round().long()
        assert torch.equal(columns, columns[0] + torch.arange(8))
        lefts.add(int(columns[0]))
    assert max(lefts) > 40
    assert min(lefts) < 16
    with pytest.raises(ValueError, match="crop 16 must not exceed size 8"):
        config("shapes", crop=16)


def test_pictures_too_narrow_to_enlarge_are_unusable():
    buffer = io.BytesIO()
    Image.new("RGB", (21, 1)).save(buffer, "PNG")
    with pytest.raises(BadSample, match="too narrow: 21×1"):
        decode(buffer.getvalue(), 8, None, Streams([0]))
    buffer = io.BytesIO()
    Image.new("RGB", (1, 20)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), 8, None, Streams([0]))["image"].shape == (3, 8, 8)


# Shards


def test_braces_globs_and_folders_of_shards(tmp_path):
    for i in range(12):
        make_shard(tmp_path / f"{i:05d}.tar", 10 * i, 2)
    assert len(expand(f"{tmp_path}/{{00000..00011}}.tar")) == 12
    assert [os.path.basename(p) for p in expand(f"{tmp_path}/{{00003,00001}}.tar")] == ["00003.tar", "00001.tar"]
    for src in (f"{tmp_path}/{{00000..00011}}.tar", f"{tmp_path}/*.tar", str(tmp_path)):
        assert len(set(keys(take(loader(src), 6)))) == 24


@pytest.mark.parametrize("name", ["set [1]", "a{b,c}", "what?", "*"])
def test_folders_and_shards_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for i in range(2):
        make_shard(folder / f"{i}.tar", 10 * i, 2)
    assert len(set(keys(take(loader(str(folder)), 3)))) == 4
    assert len(set(keys(take(loader(str(folder / "1.tar")), 3)))) == 2


def test_no_source_at_all_is_a_wrong_setting():
    with pytest.raises(UsageError, match=r"^config: source: .* at least 1 item"):
        load(None, ["source=[]"], DataConfig)


def test_shards_give_the_samples_of_a_folder(tmp_path):
    folder = make_folder(tmp_path / "folder", 6)
    members = [(f"./{f.name}", f.read_bytes()) for f in sorted(folder.iterdir())]
    shard = ShardSource(str(make_tar(tmp_path / "a.tar", members)), 8)
    source = FolderSource(folder, 8)
    for i in range(6):
        a, b = source.load(i, Streams([i])), shard.load(i, Streams([i]))
        assert torch.equal(a["image"], b["image"])
        assert a["caption"] == b["caption"]


def test_arrays_labels_and_caption_kinds(tmp_path):
    def array(i):
        buffer = io.BytesIO()
        np.save(buffer, np.full(3, i, np.float16))
        return buffer.getvalue()

    kinds = {"captions": {"short": "s", "descriptive": ["d1", "d2"], "alt": "a"}}
    path = make_shard(
        tmp_path / "a.tar",
        0,
        8,
        **{"json": lambda i: json.dumps(kinds).encode(), "cls": lambda i: b"%d" % i, "clip.npy": array},
    )
    batch = take(loader(str(path), 8, captions={"short": 1, "descriptive": 1}), 1)[0]
    assert batch["clip"].shape == (8, 3)
    assert batch["label"].tolist() == batch["clip"][:, 0].int().tolist() == [int(k) for k in batch["key"]]
    many = take(loader(str(path), 8, captions={"short": 1, "descriptive": 3}), 100)
    counts = Counter(c for b in many for c in b["caption"])
    assert counts.keys() == {"s", "d1", "d2"}
    assert counts["s"] / 800 == pytest.approx(0.25, abs=0.06)


def test_caption_weights_fall_back_to_what_is_there_and_it_is_said(caplog):
    _say.cache_clear()
    for weights in ({}, {"short": 1.0}, {"text": 1.0}):
        assert pick_caption({"text": ["t"]}, weights, Streams([0])) == "t"  # nothing else is there
    assert not caplog.messages
    for _ in range(2):
        assert pick_caption({"text": ["t"], "long": ["l"]}, {"short": 1.0, "alt": 1.0}, Streams([0])) == "l"
    lacking = "where a picture has no short and no alt caption (data.captions)"
    said = f"{lacking}, another is drawn, of long, text (said once)"
    assert caplog.messages == [said]
    with pytest.raises(BadSample, match="no caption"):
        pick_caption({"text": []}, {}, Streams([0]))


def test_without_weights_kinds_weigh_as_in_the_shapes_world_and_text_only_alone():
    texts = {"text": ["t"], "short": ["s"], "descriptive": ["d"], "alt": ["a"]}

    def shares(weights, **captions):
        counts = Counter(pick_caption(captions, weights, Streams([seed])) for seed in range(1000))
        return {caption: count / 1000 for caption, count in counts.items()}

    assert shares({}, **texts) == pytest.approx({"s": 0.6, "d": 0.25, "a": 0.15}, abs=0.05)
    assert shares({"other": 1}, **texts).keys() == {"s", "d", "a"}
    assert shares({"text": 1, "short": 1}, **texts) == pytest.approx({"t": 0.5, "s": 0.5}, abs=0.05)
    assert shares({}, text=["t"]) == shares({}, text=["t"], short=[]) == {"t": 1}
    assert shares({}, text=["t"], mine=["m"], ours=["o"]) == pytest.approx({"m": 0.5, "o": 0.5}, abs=0.05)


def test_rendered_shards_have_the_captions_of_the_world(tmp_path):
    write_shards(tmp_path, count=40, size=8)
    source = ShardSource(str(tmp_path), 8)
    rows = [source.load(i % 40, Streams([i])) for i in range(400)]
    written = shapes.batch(range(40), 8)["captions"]
    short = [row["caption"] == written[i % 40]["short"] for i, row in enumerate(rows)]
    assert sum(short) / 400 == pytest.approx(shapes.WEIGHTS["short"], abs=0.08)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_pickles_in_a_tar_are_never_opened(tmp_path):
    evil = pickle.dumps(Hostile(str(tmp_path / "owned")))
    buffer = io.BytesIO()
    np.save(buffer, np.array([Hostile(str(tmp_path / "owned"))], dtype=object), allow_pickle=True)
    names = ["0000.pyd", "0000.pickle", "0000.pkl", "0000.pth", "0000.pt", "0000.ten", "../../0000.txt"]
    members = [(f"{i:04d}.{kind}", data) for i in range(3) for kind, data in (("png", picture(i)), ("txt", b"fine"))]
    path = make_tar(tmp_path / "a.tar", [(name, evil) for name in names] + members)
    batch = take(loader(str(path)), 1)[0]
    assert set(batch) == {"image", "caption", "key", "seed"}
    assert not (tmp_path / "owned").exists()
    path = make_tar(tmp_path / "b.tar", [*members, ("0000.npy", buffer.getvalue())])
    with pytest.raises(BadSample, match="unreadable npy"):
        ShardSource(str(path), 8).load(0, Streams([0]))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ",
        b"\x93NUMPY\x01\x00\x05\x00{'a' \n",
        b"\x93NUMPY\x01\x00\x0a\x00{'a': (((\n",
        b"\x93NUMPY\x01\x00\x28\x23" + b"-" * 8999 + b"\n",
        b"PK\x03\x04 and no zip",
        b"",
    ],
)
def test_any_damage_to_an_array_costs_one_sample(tmp_path, data):
    path = make_shard(tmp_path / "a.tar", 0, 1, npy=lambda _: data)
    with pytest.raises(BadSample, match="unreadable npy"):
        ShardSource(str(path), 8).load(0, Streams([0]))


@pytest.mark.parametrize("reader", ["_json_captions", "_array"])
def test_a_lack_of_memory_costs_no_sample(tmp_path, monkeypatch, reader):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    path = make_shard(tmp_path / "a.tar", 0, 1, npy=lambda _: buffer.getvalue(), json=lambda _: b"{}")

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(f"t2i.data.shards.{reader}", full)
    with pytest.raises(MemoryError):
        ShardSource(str(path), 8).load(0, Streams([0]))


@pytest.mark.parametrize("src", ["pipe:touch owned; cat a.tar", "s3://bucket/a.tar", "a.tar.gz"])
def test_addresses_that_are_not_tar_files_are_refused(src):
    with pytest.raises(UsageError):
        loader(src)


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*\*.tar"):
        loader(f"{tmp_path}/*.tar")
    make_shard(tmp_path / "1.tar", 0, 1)
    with pytest.raises(DataError, match=r"2.tar does not exist"):
        loader(f"{tmp_path}/{{1..2}}.tar")
    with pytest.raises(DataError, match=r"no/such/folder does not exist"):
        loader("no/such/folder")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"uncompressed .tar files, got .*a.zip"):
        loader(f"{tmp_path}/a.zip")


def test_truncated_and_garbage_tars_give_what_they_can(tmp_path, caplog):
    data = make_shard(tmp_path / "a.tar", 0, 10).read_bytes()
    (tmp_path / "b.tar").write_bytes(data[: 13 * 1024 + 516])  # inside the last member of the seventh sample
    (tmp_path / "c.tar").write_bytes(os.urandom(5000))
    with caplog.at_level(logging.WARNING):
        source = ShardSource(f"{tmp_path}/*.tar", 8)
    assert len(source) == 10 + 7
    assert sum("is damaged" in message for message in caplog.messages) == 2
    for i in range(len(source) - 1):
        source.load(i, Streams([i]))
    with pytest.raises(DataError, match="no picture in the 1 tars"):
        ShardSource(f"{tmp_path}/c.tar", 8)


def test_a_rewritten_shard_is_indexed_anew(tmp_path):
    assert len(ShardSource(str(make_shard(tmp_path / "a.tar", 0, 3)), 8)) == 3
    assert ShardSource(str(make_shard(tmp_path / "a.tar", 5, 30)), 8).keys[0] == "0005"


def test_members_beyond_the_limit_are_refused_before_reading(tmp_path, monkeypatch):
    source = ShardSource(str(make_shard(tmp_path / "a.tar", 0, 1)), 8)
    for limit in ("MAX_MEMBER", "MAX_TEXT"):
        monkeypatch.setattr(f"t2i.data.shards.{limit}", 5)
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read"))
    with pytest.raises(BadSample, match="member too large"):
        source.load(0, Streams([0]))


def test_sources_travel_to_other_processes(tmp_path):
    source = ShardSource(str(make_shard(tmp_path / "a.tar", 0, 2)), 8)
    source.load(0, Streams([0]))
    assert torch.equal(
        pickle.loads(pickle.dumps(source)).load(1, Streams([0]))["image"], source.load(1, Streams([0]))["image"]
    )


# Bad samples


def spoiled(tmp_path, bad, good):
    folder = make_folder(tmp_path / "a", good)
    for i in range(bad):
        (folder / f"bad{i:03d}.png").write_bytes(picture(5, (200, 200))[:60])
        (folder / f"bad{i:03d}.txt").write_text("bad")
    return str(folder)


def test_bad_samples_are_replaced_counted_and_listed(tmp_path, caplog):
    folder = spoiled(tmp_path, 1, 97)
    (tmp_path / "a" / "000.txt").unlink()
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    (tmp_path / "a" / "001.png").write_bytes(huge.getvalue())
    data = loader(folder, 7, bad_log=tmp_path / "bad.jsonl")
    with caplog.at_level(logging.WARNING):
        batches = take(data, 28)
    assert data.bad == {"unreadable picture": 2, "no caption": 2, "too large": 2}
    counts = ", ".join(f"{reason}: 2" for reason in data.bad)
    assert caplog.messages[-1] == f"train data: 196 samples used, skipped {counts}"
    assert sum("skipped sample" in message for message in caplog.messages) == 3
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == ["000", "001", "bad000"]
    assert Counter(row["reason"] for row in rows) == dict.fromkeys(data.bad, 1)
    assert all(len(batch["key"]) == 7 for batch in batches)
    assert not {"bad000", "000", "001"} & set(keys(batches))
    again = take(loader(folder, 7, start=70, bad_log=tmp_path / "bad.jsonl"), 18)
    assert keys(again) == keys(batches[10:])
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3


def test_names_that_are_not_utf8_are_names_too(tmp_path):
    folder = spoiled(tmp_path, 1, 20)
    name = os.fsencode(tmp_path / "a") + b"/caf\xe9.png"
    with open(name, "wb") as file:
        file.write(b"no picture")
    with open(name[:-4] + b".txt", "w") as file:
        file.write("coffee")
    take(loader(folder, 11, bad_log=tmp_path / "bad.jsonl"), 4)
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert sorted(os.fsencode(row["key"]) for row in rows) == [b"bad000", b"caf\xe9"]


def test_a_list_of_bad_samples_that_was_cut_off_does_not_stop_a_run(tmp_path):
    folder, path = spoiled(tmp_path, 1, 20), tmp_path / "bad.jsonl"
    path.write_bytes('{"key": "a"}\n{"key": "b", "reason": "no{"key": "c"}\n[]\n{"key": "é'.encode()[:-1])
    take(loader(folder, 7, bad_log=path), 6)
    assert b'"bad000"' in path.read_bytes()


def test_a_list_of_bad_samples_on_a_full_disk_is_named(tmp_path):
    data = loader(spoiled(tmp_path, 1, 20), 21, bad_log=tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").symlink_to("/dev/full")
    with pytest.raises(FullDiskError, match=r"no space left to write .*/bad.jsonl"):
        take(data, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(tmp_path, workers):
    data = loader(spoiled(tmp_path, 40, 60), 10, num_workers=workers)
    message = r"samples: unreadable picture: \d+, such as bad\d+ \(beside \d+ good ones; data.max_bad_fraction=0.2\)"
    with pytest.raises(DataError, match=message):
        take(data, 40)


def test_the_share_of_bad_samples_is_one_of_all_samples(tmp_path):
    folder = spoiled(tmp_path, 45, 55)
    assert len(take(loader(folder, 10, max_bad_fraction=0.5), 100)) == 100
    with pytest.raises(DataError, match=r"max_bad_fraction=0\.4"):
        take(loader(folder, 10, max_bad_fraction=0.4), 100)


def test_a_bad_file_among_a_few_held_out_ones_is_skipped_and_alone_means_none(tmp_path):
    folder = make_folder(tmp_path / "a", 20)
    held = {mix("val", f"{i:03d}"): f"{i:03d}" for i in range(20)}
    smallest = sorted(held)[:3]
    fraction = {num: smallest[num] / 2**63 for num in (1, 2)}
    (folder / f"{held[smallest[0]]}.txt").unlink()
    data = loader(str(folder), 8, split="val", val_fraction=fraction[2], max_bad_fraction=0, bad_log=tmp_path / "bad")
    assert {key for batch in take(data, 40) for key in batch["key"]} == {held[smallest[1]]}
    assert len((tmp_path / "bad").read_text().splitlines()) == 1
    with pytest.raises(NothingHeldOutError, match="32 samples in a row"):
        take(loader(str(folder), 8, split="val", val_fraction=fraction[1]), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_few_bad_samples_do_not_stop_a_small_folder(tmp_path, workers):
    assert len(take(loader(spoiled(tmp_path, 2, 18), 10, num_workers=workers), 40)) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_said_once_is_said_once_of_all_processes_and_loaders(tmp_path, caplog, workers):
    _say.cache_clear()
    folder = make_folder(tmp_path / "a", 4)
    for path in folder.glob("*.png"):
        Image.new("RGBA", (9, 9)).save(path)
    batches = loader(str(folder), 2, num_workers=workers)
    assert set(take(batches, 4)[0]) == {"image", "caption", "key", "seed"}
    take(loader(str(folder), 2, num_workers=workers), 4)
    assert caplog.messages == ["what is transparent in a picture is laid on white (said once)"]
    _say.cache_clear()
    caplog.clear()
    take(loader(str(folder), 2, num_workers=workers, rank=1, world=2), 4)
    assert caplog.messages == []


def test_the_announcement_tells_what_is_held_out(tmp_path, caplog):
    folder = make_folder(tmp_path / "a", 40)
    data, held = loader(str(folder), val_fraction=0.3), loader(str(folder), val_fraction=0.3, split="val")
    num = [len(opened.data.sources[0]) for opened in (data, held)]
    with caplog.at_level(logging.INFO):
        data.announce()
    assert sum(num) == 40
    assert f"{folder}: {num[0]} to train on, {num[1]} held out" in caplog.messages


def test_enlarged_pictures_are_told_once_and_counted(tmp_path, caplog):
    folder = make_folder(tmp_path / "a", 6)
    Image.new("RGB", (40, 7)).save(folder / "003.png")
    with caplog.at_level(logging.WARNING):
        batches = take(loader(str(folder), 3), 4)  # two epochs
        take(loader(str(make_folder(tmp_path / "b", 6)), 3), 4)
    assert caplog.messages == [
        "picture 003 is smaller than data.size=8: enlarged, it is blurred",
        "train data: 2 of 12 pictures enlarged",
    ]
    assert set(batches[0]) == {"image", "caption", "key", "seed"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_stops_at_once(tmp_path, workers):
    folder = spoiled(tmp_path, 5, 0)
    with pytest.raises(DataError, match="32 samples in a row"):
        take(loader(folder, 4, num_workers=workers), 1)


# Shapes


def test_shapes_are_functions_of_the_position_and_splits_never_meet():
    whole = take(loader("shapes", 4), 4)
    rest = take(loader("shapes", 8, start=8), 1)[0]
    assert rest["key"] == keys(whole[2:])
    assert torch.allclose(rest["image"], torch.cat([b["image"] for b in whole[2:]]), atol=1e-5)
    assert rest["caption"] == whole[2]["caption"] + whole[3]["caption"]
    assert whole[0]["image"].shape == (4, 3, 8, 8)
    assert whole[0]["image"].abs().max() <= 1
    assert not set(keys(whole)) & set(keys(take(loader("shapes", 16, split="val"), 1)))


def test_shapes_crops_are_parts_of_the_large_picture():
    crops = take(loader("shapes", 4, size=32, crop=8), 1)[0]
    assert crops["image"].shape == (4, 3, 8, 8)
    full = take(loader("shapes", 4, size=32), 1)[0]
    assert full["key"] == crops["key"]
    for crop, picture_ in zip(crops["image"], full["image"], strict=True):
        windows = picture_.unfold(1, 8, 1).unfold(2, 8, 1)  # (3, 25, 25, 8, 8)
        error = (windows - crop[:, None, None]).square().mean((0, 3, 4))
        assert error.min() < 1e-3


def test_shapes_captions_follow_the_weights():
    short = take(loader("shapes", 32, captions={"short": 1}), 1)[0]["caption"]
    long = take(loader("shapes", 32, captions={"descriptive": 1}), 1)[0]["caption"]
    assert sum(map(len, long)) > 1.5 * sum(map(len, short))


def test_shapes_have_as_many_things_as_weighed():
    def counts(**config):
        scenes = take(loader("shapes", 200, **config), 1)[0]["scene"]
        return Counter(len(json.loads(scene)["things"]) for scene in scenes)

    assert counts(num_things={4: 1}) == {4: 200}
    mixed = counts(num_things={1: 1, 2: 3})
    assert mixed.keys() == {1, 2}
    assert mixed[2] / 200 == pytest.approx(0.75, abs=0.1)
    assert counts() == counts(num_things=shapes.NUM_THINGS)
    assert counts(num_things={1: 1, 2: 3}) == counts(num_things={2: 3, 1: 1})
    for wrong in ({5: 1}, {1: -1, 2: 2}, {1: 0}):
        with pytest.raises(ValueError, match="num_things must weigh 1 to 4"):
            DataConfig(num_things=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": {"shrt": 1}}, "no kind 'shrt'; .*, did you mean 'short'"),
        ({"size": 64, "crop": 62}, "data.crop=62 and data.size=64 must be multiples of 4"),
    ],
)
def test_what_the_world_does_not_have_is_refused_before_a_worker_starts(changes, message):
    with pytest.raises(UsageError, match=message):
        loader("shapes", num_workers=2, **changes)


# Loading processes


@pytest.mark.parametrize(
    ("error", "workers", "killed"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 1, True),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), 1, True),
        (RuntimeError("Pin memory thread exited unexpectedly"), 1, True),
        (ConnectionResetError(104, "Connection reset by peer"), 1, True),
        (EOFError(), 1, True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), 1, False),
        (ConnectionResetError(104, "Connection reset by peer"), 0, False),
    ],
    ids=str,
)
def test_only_a_process_that_was_killed_is_called_that(tmp_path, monkeypatch, error, workers, killed):
    def broken(*_, **__):
        raise error
        yield

    monkeypatch.setattr("t2i.data.loader.DataLoader", broken)
    with pytest.raises(DataError if killed else type(error)) as caught:
        take(loader(str(make_folder(tmp_path / "a", 2)), 2, num_workers=workers), 1)
    assert ("fewer data.num_workers" in str(caught.value)) == killed
    assert "\n" not in str(caught.value) or not killed
