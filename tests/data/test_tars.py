"""What a tar holds: names with periods, doubles, links, and headers and members that are made to do harm."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files_of_data import make_shard, make_tar, picture

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.shards import ShardSource, expand
from t2i.data.source import BadSample, Needs
from t2i.data.tars import MAX_HEADER, RESERVED, index_tar


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def load_all(source: ShardSource) -> dict[str, tuple[int, str]]:
    """Grey value and caption by key."""
    rows = [source.load(i, Streams([0])) for i in range(len(source))]
    return {row["key"]: (round((float(row["image"][0, 0, 0]) + 1) * 127.5), row["caption"]) for row in rows}


def shard(path: Path, members: list[tuple[str, bytes]], **changes: Any) -> ShardSource:
    return ShardSource(str(make_tar(path / "a.tar", members)), 8, **changes)


def test_names_with_periods_do_not_collide(tmp_path: Path) -> None:
    names = [
        "scan 2.0 front",
        "scan 2.1 back",
        "2022.05",
        "2022.06",
        "dr. house",
        "dr. who",
        "plain",
        "d/v1.2",
        "d/v1.3",
    ]
    members = []
    for value, name in enumerate(names):
        members += [(f"{name}.png", picture(value)), (f"{name}.txt", name.encode()), (f"{name}.z.npy", npy([value]))]
    source = shard(tmp_path, members, needs=("image", "caption", "z"))
    assert load_all(source) == {name: (value, name) for value, name in enumerate(names)}
    assert [int(source.load(i, Streams([0]))["z"]) for i in range(len(names))] == list(range(len(names)))
    assert not source.left_out.counts


def test_keys_of_webdataset_stay_where_nothing_collides(tmp_path: Path) -> None:
    members = [("a.input.png", picture(1)), ("a.alt.txt", b"one"), ("a.b.z.npy", npy([1])), ("dr. who.png", picture(2))]
    index = index_tar(str(make_tar(tmp_path / "a.tar", members)))
    assert {key: sorted(members) for key, members in index.samples.items()} == {
        "a": ["b.z.npy", "png", "txt"],
        "dr": ["png"],
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_picture_is_the_one_whose_type_follows_the_key(tmp_path: Path, order: int) -> None:
    members = [
        *[("0.mask.png", picture(255)), ("0.png", picture(7)), ("0.txt", b"seven"), ("0.alt.txt", b"other")],
        *[("1.jpg", picture(8, kind="JPEG")), ("1.seg.png", picture(255)), ("1.txt", b"eight")],
    ][::order]
    source = shard(tmp_path, members)
    assert load_all(source) == {"0": (7, "seven"), "1": (8, "eight")}
    assert source.left_out.counts == {"further members of a sample": 3}


def test_doubles_are_counted_and_the_later_one_counts(tmp_path: Path) -> None:
    members = [
        ("a.png", picture(1)),
        ("a.txt", b"one"),
        ("a.png", picture(2)),
        ("a.txt", b"two"),
        ("a.jpg", picture(9)),
    ]
    members += [("b.png", picture(3)), ("b.PNG", picture(4)), ("b.txt", b"b"), ("b.z.npy", npy(1)), ("b.Z.npy", npy(2))]
    source = shard(tmp_path, members)
    assert source.left_out.counts == {
        "replaced by a later one of the same name": 2,
        "second pictures of a sample": 1,
        "of the same name but for capitals": 2,
    }
    assert source.load(1, Streams([0]))["z"] == 1
    assert str(source).startswith(
        "2 samples from 1 tar; left out: 2 replaced by a later one of the same name (such as a"
    )


def test_samples_without_what_is_needed_are_counted(tmp_path: Path) -> None:
    members = [
        ("a.png", picture(1)),
        ("a.z.npy", npy([1])),
        ("a.cls", b"0"),
        ("b.z.npy", npy([1])),
        ("c.png", picture(1)),
    ]
    members += [("d.png", picture(1)), ("d.z.npy", npy([1])), ("e.md5", b"")]
    source = shard(tmp_path, members, needs=("image", "z", "label"))
    assert source.keys == ["a"]
    assert source.left_out.counts == {
        "samples without a picture": 1,
        "samples without cls": 2,
        ".md5": 1,
    }
    with pytest.raises(DataError, match=r"no picture with w.npy in the 1 tars .*; left out: 3 samples without w.npy"):
        ShardSource(str(tmp_path / "a.tar"), 8, needs=("image", "w"))


def test_hard_links_are_read_and_other_links_are_counted(tmp_path: Path) -> None:
    kinds = {"b.png": (tarfile.LNKTYPE, "a.png"), "c.png": (tarfile.LNKTYPE, "gone.png")}
    kinds |= {
        "d.png": (tarfile.SYMTYPE, "a.png"),
        "e.png": (tarfile.FIFOTYPE, ""),
        "f": (tarfile.DIRTYPE, ""),
        ".g": (tarfile.DIRTYPE, ""),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.png", picture(5)), ("a.txt", b"a"), ("b.txt", b"b"), ("__MACOSX/._a.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, (kind, target) in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    source = ShardSource(str(tmp_path / "a.tar"), 8)
    assert load_all(source) == {"a": (5, "a"), "b": (5, "b")}
    assert source.left_out.counts == {
        "hidden or of the system": 1,
        "linked to nothing": 1,
        "symbolic links": 1,
        "neither file nor folder": 1,
    }


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_long_name_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_shard(tmp_path / "a.tar", 0, 1)
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 50 * 2**30
    data = path.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512) + info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    os.truncate(path, len(data) + info.size)  # with a hole, so it takes no room on the disk
    assert list(index_tar(str(path)).samples) == ["0000"]
    assert f"is damaged (a header of {info.size:,} bytes)" in caplog.text


def test_names_up_to_the_limit_are_read(tmp_path: Path) -> None:
    name = "/".join(["n" * 200] * 20)
    assert len(name) < MAX_HEADER
    assert load_all(shard(tmp_path, [(f"{name}.png", picture(1)), (f"{name}.txt", b"x")])) == {name: (1, "x")}


def test_members_with_holes_are_not_read_as_they_lie(tmp_path: Path) -> None:
    info = tarfile.TarInfo("b.png")
    info.type = tarfile.GNUTYPE_SPARSE
    path = make_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.txt", b"x")])
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    source = ShardSource(str(path), 8)
    assert source.keys == ["a"]
    assert source.left_out.counts == {"stored with holes (sparse)": 1}


def test_a_header_that_is_cut_off_among_its_holes_is_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("b.png")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[148:156], block[482] = b" " * 8, 1  # no checksum; more holes follow, and do not
    block[148:156] = b"%06o\0 " % sum(block)
    path = make_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.txt", b"x")])
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512) + block)
    assert ShardSource(str(path), 8).keys == ["a"]


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("cls", b"12345678901234567890123456"),
        ("cls", b"9" * 5000),
        ("cls", b"-9223372036854775809"),
        ("z.npy", header("(1000000000000,)") + bytes(8)),
        ("z.npy", header("(-1,)") + bytes(8)),
        ("z.npy", header("(2,)", "|O") + bytes(16)),
        ("z.npy", npy(np.float32([1, np.nan]))),
        ("z.npy", npy(np.float32([1, np.inf]))),
        ("z.npy", npy(np.zeros(3, np.float32))),
        ("z.npy", npy(np.array(["a", "b"]))),
        ("json", b"[" * 100_000 + b"]" * 100_000),
        ("json", b'{"captions": 1' + b"0" * 5000 + b"}"),
        ("txt", b"caf\xe9"),
    ],
)
def test_what_is_wrong_with_a_member_costs_its_sample_and_no_more(tmp_path: Path, kind: str, data: bytes) -> None:
    members = []
    for i in range(6):
        fine = {"png": picture(i), "txt": b"x", "cls": b"1", "z.npy": npy(np.float32([i, i])), "json": b"{}"}
        members += [(f"{i}.{k}", d) for k, d in (fine | ({kind: data} if i == 3 else {})).items()]
    path = make_tar(tmp_path / "a.tar", members)
    config = DataConfig(source=str(path), size=8, num_workers=0, val_fraction=0)
    loader = Loader(config, seed=0, batch_size=6, needs=Needs(("image", "label", "z")))
    batch = next(iter(loader))
    assert batch["z"].shape == (6, 2)
    assert "3" not in batch["key"]
    assert set(loader.bad) == {f"unreadable {kind}"}


@pytest.mark.parametrize("name", RESERVED)
def test_arrays_of_reserved_names_are_left_out(tmp_path: Path, name: str) -> None:
    path = make_shard(tmp_path / "a.tar", 0, 4, **{f"{name}.npy": lambda _: npy([1, 2])})
    config = DataConfig(source=str(path), size=8, num_workers=0, val_fraction=0)
    loader = Loader(config, seed=0, batch_size=4)
    assert set(next(iter(loader))) == {"image", "caption", "key", "seed"}
    assert "left out: 4 arrays of a reserved name (such as 0000." in str(loader.data.sources[0])


@pytest.mark.parametrize("array", [np.float32(3), np.zeros((0, 2)), np.arange(6).reshape(2, 3).T, np.array([True])])
def test_arrays_come_as_they_are(tmp_path: Path, array: np.ndarray) -> None:
    source = shard(tmp_path, [("a.png", picture(1)), ("a.txt", b"x"), ("a.z.npy", npy(array))])
    assert torch.equal(source.load(0, Streams([0]))["z"], torch.from_numpy(np.array(array)))


def test_texts_beyond_the_limit_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shard(tmp_path, [("a.png", picture(1)), ("a.txt", bytes(2**20 + 1))])
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("read"))
    with pytest.raises(BadSample, match="member too large"):
        source.load(0, Streams([0]))


@pytest.mark.parametrize("names", ["{0..999999999}", "{0..999}{0..999}", "{0..99}{0..99}{a,b,c,d,e,f,g,h,i,j,k}"])
def test_braces_do_not_explode(names: str) -> None:
    with pytest.raises(UsageError, match=r"stands for [0-9,]+ names, at most 100,000 are read"):
        expand(f"{names}.tar")
    with pytest.raises(UsageError, match=r"has 3,000 braces, at most 100 are read"):
        expand("{a}" * 3000)


def test_the_usual_shape_is_that_of_whole_arrays(tmp_path: Path) -> None:
    members = [(f"{i:02d}.z.npy", b"no array" if i < 20 else npy(np.zeros(4 if i == 21 else 3))) for i in range(30)]
    source = shard(tmp_path, members, needs=("z",))
    assert source.load(20, Streams([0]))["z"].shape == (3,)
    with pytest.raises(BadSample, match=r"unreadable z.npy: .*shape \(4,\), of others \(3,\)"):
        source.load(21, Streams([0]))


def test_tars_are_closed_with_their_source(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", 0, 1)

    def num_open() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    loader = Loader(DataConfig(source=str(path), size=8, num_workers=0, val_fraction=0), seed=0, batch_size=1)
    stream = iter(loader)
    next(stream)
    assert num_open() == 1
    stream.close()
    del loader, stream
    assert num_open() == 0


def test_captions_in_tars_are_clean(tmp_path: Path) -> None:
    kinds = {"captions": {"short": "\ufeffa red\u2028cube"}}
    source = shard(tmp_path, [("a.png", picture(1)), ("a.json", b"\xef\xbb\xbf" + json.dumps(kinds).encode())])
    assert source.load(0, Streams([0]))["caption"] == "a red cube"
    source = shard(tmp_path, [("a.png", picture(1)), ("a.txt", "\ufeffa\0 red\x85cube".encode("utf-16"))])
    assert source.load(0, Streams([0]))["caption"] == "a red cube"
