"""Every picture is captioned once, whatever is killed, and what went wrong is a row or a line."""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from campaigns.caption_kills import main as kill
from files_of_data import make_folder, make_shard, make_tar, picture
from PIL import Image

from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.data.caption.job import FLUSH, GIVE_UP, Job
from t2i.data.caption.store import COLUMNS, Journal, num_parts, part_of, read_rows, write_rows
from t2i.data.caption.units import alt_of, units_of
from t2i.data.source import BadSample

KINDS = ("short", "descriptive")


class Grey:
    """Tells a picture by its grey."""

    def __init__(self, name: str = "grey", fail: Callable[[int], Any] = lambda grey: None) -> None:
        self.name, self.revision, self.fail, self.asked = name, "7", fail, list[tuple[str, int]]()
        self.settings = {kind: {"prompt": f"{kind}?"} for kind in KINDS}

    def caption(self, images: Sequence[Image.Image], kind: str, seeds: Sequence[int]) -> list[Any]:
        greys = [image.getpixel((0, 0))[0] for image in images]
        self.asked += [(kind, grey) for grey in greys]
        return [self.fail(grey) or f"a {kind} picture\nof {grey}" for grey in greys]


def run(src: Path | str, out: Path, captioner: Any = None, kinds: Sequence[Any] = KINDS, **how: Any) -> Job:
    job = Job(captioner or Grey(), kinds, out, **how)
    job.run(units_of(str(src), out))
    return job


def rows(path: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(path)]


def interrupt_at(last: int) -> Callable[[int], None]:
    def fail(grey: int) -> None:
        if grey == last:
            raise KeyboardInterrupt

    return fail


def begun(key: str | None, **columns: Any) -> dict:
    """A row of a journal."""
    return dict.fromkeys(COLUMNS) | {"key": key, "hash": "", "seconds": 0.0} | columns


def test_a_row_says_who_wrote_what_of_which_picture(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    make_shard(shards / "00000.tar", 0, 3)
    job = run(shards, tmp_path / "out")
    assert str(job) == "3 pictures captioned, 0 were there"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.captions.parquet"]
    found = rows(tmp_path / "out" / "00000.captions.parquet")
    assert found[1] | {"hash": ""} == {
        "key": "0001",
        "hash": "",
        "alt": "picture 1",
        "short": "a short picture of 1",
        "descriptive": "a descriptive picture of 1",
        "model": json.dumps({"descriptive": "grey", "short": "grey"}),
        "revision": json.dumps({"descriptive": "7", "short": "7"}),
        "settings": json.dumps({kind: {"prompt": f"{kind}?"} for kind in sorted(KINDS)}),
        "error": None,
    }
    assert len({row["hash"] for row in found}) == 3


def test_only_what_is_missing_is_done_again(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 5), tmp_path / "out"
    run(folder, out, kinds=["short"])
    before = (out / "pictures.captions.parquet").read_bytes()
    same = Grey()
    assert str(run(folder, out, same, kinds=["short"])) == "0 pictures captioned, 5 were there"
    assert same.asked == []
    assert (out / "pictures.captions.parquet").read_bytes() == before
    (folder / "001.png").write_bytes(picture(99))  # another picture
    (folder / "002.txt").write_text("new words")
    (folder / "003.png").unlink()
    make_folder(folder, 1, start=7)
    changed = Grey()
    assert str(run(folder, out, changed, kinds=["short"])) == "2 pictures captioned, 3 were there"
    assert sorted(changed.asked) == [("short", 7), ("short", 99)]
    found = {row["key"]: row for row in rows(out / "pictures.captions.parquet")}
    assert list(found) == ["000", "001", "002", "004", "007", "003"]  # what is gone may come back
    assert (found["001"]["short"], found["002"]["alt"]) == ("a short picture of 99", "new words")
    both = Grey("other")
    told = str(run(folder, out, both))
    assert {kind for kind, _ in both.asked} == {"descriptive"}
    assert "5 pictures captioned" in told
    found = {row["key"]: row for row in rows(out / "pictures.captions.parquet")}
    assert json.loads(found["000"]["model"]) == {"short": "grey", "descriptive": "other"}
    assert "5 were there (5 short of model grey (such as 000))" in str(run(folder, out, Grey("other"), kinds=["short"]))


def test_nothing_but_captions_is_written_beside_the_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    run(folder, folder)
    run(folder, folder)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"pictures.captions.parquet"}
    assert {name: after[name] for name in before} == before


def test_failures_are_rows_and_are_tried_again(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 6), tmp_path / "out"
    (folder / "001.png").write_bytes(b"no picture")
    (folder / "005.txt").write_bytes(b"\xff\xfe\xfd")

    def fail(grey: int) -> Any:
        return {2: " \n\u200b . ", 3: DataError("server said no"), 4: "\ud83d fine\u202e\x1b\0"}.get(grey)

    job = run(folder, out, Grey(fail=fail), kinds=["short"])
    assert str(job) == (
        "3 pictures captioned, 0 were there, 3 without a caption: 2 no short caption (such as 002), "
        "1 unreadable picture (such as 001)"
    )
    found = {row["key"]: row for row in rows(out / "pictures.captions.parquet")}
    assert found["001"]["error"].startswith("unreadable picture")
    assert found["002"]["error"] == "no short caption: the captioner wrote nothing"
    assert found["003"]["error"] == "no short caption: server said no"
    assert (found["004"]["short"], found["005"]["alt"]) == ("fine", None)
    better = Grey()
    assert str(run(folder, out, better, kinds=["short"])).startswith("2 pictures captioned, 3 were there, 1 without")
    assert sorted(better.asked) == [("short", 2), ("short", 3)]
    before = (out / "pictures.captions.parquet").read_bytes()
    run(folder, out, kinds=["short"])
    assert (out / "pictures.captions.parquet").read_bytes() == before


def test_pictures_that_failed_before_do_not_end_the_job(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 4), tmp_path / "out"
    refused = Grey(fail=lambda grey: DataError("refused") if grey == 2 else None)
    run(folder, out, refused, kinds=["short"])
    before = (out / "pictures.captions.parquet").read_bytes()
    told = "0 pictures captioned, 3 were there, 1 without a caption: 1 no short caption (such as 002)"
    assert str(run(folder, out, refused, kinds=["short"])) == told
    assert (out / "pictures.captions.parquet").read_bytes() == before
    make_folder(folder, 2, start=8)
    assert str(run(folder, out, refused, kinds=["short"], batch_size=3)).startswith("2 pictures captioned, 3 were")


def test_a_captioner_that_has_worked_may_fail_at_the_start_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for i in range(12):
        make_shard(tmp_path / "shards" / f"{i:02d}.tar", 4 * i, 4)
    one = Grey(fail=lambda grey: DataError("refused") if grey == 4 else None)
    assert str(run(tmp_path / "shards", tmp_path / "out", one, ["short"], batch_size=1)).startswith("47 pictures cap")
    dies = Grey(fail=lambda grey: DataError("gone") if grey > 4 else None)
    with pytest.raises(DataError, match=rf"no caption for {GIVE_UP} pictures in a row, such as 0036: no short caption"):
        run(tmp_path / "shards", tmp_path / "other", dies, ["short"], batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_picture_that_is_refused_keeps_no_other_from_its_caption(tmp_path: Path, batch_size: int) -> None:
    refuses = Grey(fail=lambda grey: DataError("refused") if grey in (1, 2) else None)
    folder, new = make_folder(tmp_path / "pictures", 20, start=100), make_folder(tmp_path / "new", 4, start=1)
    assert str(run(new, tmp_path / "fresh", refuses, ["short"], batch_size=batch_size)).startswith("2 pictures cap")
    run(folder, tmp_path / "out", refuses, ["short"])
    make_folder(folder, 1, start=1)  # alone, it is told from a server that is down by a picture that has a caption
    told = str(run(folder, tmp_path / "out", refuses, ["short"], batch_size=batch_size))
    assert told == "0 pictures captioned, 20 were there, 1 without a caption: 1 no short caption (such as 001)"
    make_folder(folder, 1, start=2)
    make_folder(folder, 5, start=200)
    told = str(run(folder, tmp_path / "out", refuses, ["short"], batch_size=batch_size))
    assert told == "5 pictures captioned, 20 were there, 2 without a caption: 2 no short caption (such as 001)"


def test_a_captioner_that_is_down_leaves_no_rows_of_new_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 20, start=100)
    run(folder, tmp_path / "out", kinds=["short"])
    before = (tmp_path / "out" / "pictures.captions.parquet").read_bytes()
    make_folder(folder, 5)
    dead = Grey(fail=lambda grey: DataError("gone"))
    with pytest.raises(DataError, match="no caption for 5 pictures in a row, such as 004: no short caption: gone"):
        run(folder, tmp_path / "out", dead, ["short"])
    assert len(dead.asked) == 5 + 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pictures.captions.parquet"]
    assert (tmp_path / "out" / "pictures.captions.parquet").read_bytes() == before


def test_shards_wait_until_the_captioner_has_written_something(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for i in range(3):
        make_shard(tmp_path / "shards" / f"{i}.tar", 4 * i, 4)
    with pytest.raises(DataError, match="no caption for 12 pictures in a row, such as 0011"):
        run(tmp_path / "shards", tmp_path / "dead", Grey(fail=lambda grey: DataError("gone")), ["short"])
    assert not (tmp_path / "dead").exists()
    late = Grey(fail=lambda grey: DataError("refused") if grey < 8 else None)
    told = "4 pictures captioned, 0 were there, 8 without a caption: 8 no short caption (such as 0000)"
    assert str(run(tmp_path / "shards", tmp_path / "out", late, ["short"])) == told
    found = [[row["error"] for row in rows(tmp_path / "out" / f"{i}.captions.parquet")] for i in range(3)]
    assert found == [["no short caption: refused"] * 4] * 2 + [[None] * 4]


def test_a_journal_of_fewer_kinds_is_completed(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 40), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, Grey(fail=interrupt_at(39)), kinds=["short"])
    both = Grey()
    assert str(run(folder, out, both)) == "40 pictures captioned, 0 were there"
    assert sorted(both.asked) == [("descriptive", i) for i in range(40)] + [("short", i) for i in range(32, 40)]
    assert all(row["short"] and row["descriptive"] for row in rows(out / "pictures.captions.parquet"))


def test_rows_of_a_journal_stay_though_their_pictures_are_gone(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 20), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, Grey(fail=interrupt_at(19)), kinds=["short"])
    (folder / "003.png").unlink()
    assert str(run(folder, out, kinds=["short"])) == "4 pictures captioned, 15 were there"
    found = rows(out / "pictures.captions.parquet")
    assert [row["key"] for row in found] == [f"{i:03d}" for i in range(20) if i != 3] + ["003"]
    assert found[-1]["short"] == "a short picture of 3"
    before = (out / "pictures.captions.parquet").read_bytes()
    assert str(run(folder, out, kinds=["short"])) == "0 pictures captioned, 19 were there"
    assert (out / "pictures.captions.parquet").read_bytes() == before


def test_a_file_that_cannot_be_read_for_once_keeps_its_captions(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    run(folder, tmp_path, kinds=["short"])
    (unit,) = units_of(str(folder), tmp_path)

    def read(i: int) -> Any:
        raise BadSample("unreadable file", "Stale file handle")

    job = Job(Grey(), ["short"], tmp_path)
    job.run([unit._replace(read=read)])
    assert str(job) == "0 pictures captioned, 0 were there, 3 without a caption: 3 unreadable file (such as 000)"
    assert [row["short"] for row in rows(tmp_path / "pictures.captions.parquet")] == [
        f"a short picture of {i}" for i in range(3)
    ]
    assert str(run(folder, tmp_path, kinds=["short"])) == "0 pictures captioned, 3 were there"


def test_of_two_pictures_of_one_name_the_first_is_captioned_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    (folder / "001.webp").write_bytes(picture(77))
    for _ in range(2):
        job = run(folder, tmp_path, captioner := Grey(), kinds=["short"])
        assert [row["key"] for row in rows(tmp_path / "pictures.captions.parquet")] == ["000", "001", "002"]
    assert (captioner.asked, str(job)) == ([], "0 pictures captioned, 3 were there")


def test_a_caption_of_a_megabyte_is_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 2)
    job = run(folder, tmp_path, Grey(fail=lambda grey: "a cube " * 150_000 if grey else None), kinds=["short"])
    assert str(job).startswith("1 pictures captioned, 0 were there, 1 without")
    error = rows(tmp_path / "pictures.captions.parquet")[1]["error"]
    assert error == "no short caption: the captioner wrote 1,049,999 characters, more than 65,536"


def test_a_batch_that_fails_as_a_whole_costs_only_the_picture_to_blame(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 6)

    def fail(grey: int) -> Any:
        if grey == 3:
            raise RuntimeError("shapes cannot be multiplied")

    run(folder, tmp_path, Grey(fail=fail), kinds=["short"])
    errors = {row["key"]: row["error"] for row in rows(tmp_path / "pictures.captions.parquet")}
    assert [key for key, error in errors.items() if error] == ["003"]
    assert errors["003"] == "no short caption: shapes cannot be multiplied"


def test_a_captioner_that_writes_nothing_ends_the_job_in_one_line(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 200), tmp_path / "out"
    dead = Grey(fail=lambda grey: DataError("http://x cannot be reached"))
    message = r"grey wrote no caption for 32 pictures in a row, such as 031: no short caption: http://x cannot"
    with pytest.raises(DataError, match=message):
        run(folder, out, dead, kinds=["short"])
    assert len(dead.asked) == GIVE_UP
    assert not out.exists()
    dies = Grey(fail=lambda grey: DataError("gone") if grey >= 100 else None)
    with pytest.raises(DataError, match="in a row"):
        run(folder, out, dies, kinds=["short"])
    assert len(dies.asked) == 104 - 104 % 8 + GIVE_UP
    again = Grey()
    run(folder, out, again, kinds=["short"])
    assert min(grey for _, grey in again.asked) == 104  # the last batch with a caption is done, failures among it rows
    assert len(rows(out / "pictures.captions.parquet")) == 200
    assert sorted(path.name for path in out.iterdir()) == ["pictures.captions.parquet"]


def test_captions_of_one_kind_outlive_a_captioner_that_fails_at_the_other(tmp_path: Path) -> None:
    folder, whole, out = make_folder(tmp_path / "pictures", 200), tmp_path / "whole", tmp_path / "out"

    class Half(Grey):
        def caption(self, images: Sequence[Image.Image], kind: str, seeds: Sequence[int]) -> list[Any]:
            texts = super().caption(images, kind, seeds)
            return texts if kind == "short" else [DataError("gone") for _ in texts]

    with pytest.raises(DataError, match=r"pictures in a row, such as \d+: no descriptive caption: gone"):
        run(folder, out, Half())
    left = Journal(out / "pictures.captions.jsonl").rows
    assert [(row["short"], row["descriptive"], row["error"]) for row in left] == [
        (f"a short picture of {i}", None, None) for i in range(len(left))
    ]
    assert left
    again = Grey()
    assert str(run(folder, out, again)).startswith("200 pictures captioned, 0 were there")
    assert [grey for kind, grey in again.asked if kind == "short"] == list(range(len(left), 200))
    run(folder, whole)
    assert rows(out / "pictures.captions.parquet") == rows(whole / "pictures.captions.parquet")


def test_mistakes_of_the_user_and_a_lack_of_memory_are_no_rows(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 3)
    for error in (UsageError("wrong kind"), MemoryError()):

        def fail(grey: int, error: Exception = error) -> Any:
            raise error

        with pytest.raises(type(error)):
            run(folder, tmp_path / "out", Grey(fail=fail))
    assert not (tmp_path / "out" / "pictures.captions.parquet").exists()


def test_a_file_cut_short_is_one_line(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 3), tmp_path / "out"
    run(folder, out)
    path = out / "pictures.captions.parquet"
    whole = path.read_bytes()
    for data in (whole[:-9], whole[:100], b"", b"PAR1" + b"\0" * 50):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"pictures.captions.parquet is no whole parquet file") as caught:
            run(folder, out)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).select(["key"]), path)
    with pytest.raises(DataError, match="holds no captions of t2i: it has no column hash, alt"):
        run(folder, out)
    path.write_bytes(whole[:50] + bytes(200) + whole[250:])
    with pytest.raises(DataError, match="is no whole parquet file, maybe cut short"):
        run(folder, out)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("key", [0, 1, 2], "its column key is of int64$"),
        ("key", [None, "001", "002"], "a key is missing, or stands in two rows$"),
        ("key", ["000", "000", "002"], "a key is missing, or stands in two rows$"),
        ("short", [1.0, 2.0, 3.0], "its column short is of double$"),
        ("seconds", ["a", "b", "c"], "its column seconds is of string$"),
        ("model", ["{}", "x{", None], "the model of 001 is not JSON by kind$"),
        ("settings", ["{}", "{}", "[1]"], "the settings of 002 is not JSON by kind$"),
    ],
)
def test_a_file_of_something_else_is_one_line_and_stays(
    tmp_path: Path, column: str, values: list, message: str
) -> None:
    folder, path = make_folder(tmp_path / "pictures", 3), tmp_path / "pictures.captions.parquet"
    run(folder, tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)
    before, names = path.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        run(folder, tmp_path, kinds=["short"])
    assert "\n" not in str(caught.value)
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == (before, names)


def test_a_journal_that_was_cut_off_is_taken_up_at_its_last_whole_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl")
    journal.append([[begun("a"), begun("b")], [begun("é\udcff")]])
    whole = (tmp_path / "x.jsonl").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "x.jsonl").write_bytes(whole[:cut])
        again = Journal(tmp_path / "x.jsonl")
        assert [row["key"] for row in again.rows] == (["a", "b"] if cut > whole.index(b"\n") else [])
        again.append([[begun("c")]])
        assert [row["key"] for row in Journal(tmp_path / "x.jsonl").rows][-1] == "c"
    (tmp_path / "x.jsonl").write_bytes(whole)
    assert Journal(tmp_path / "x.jsonl").rows[-1]["key"] == "é\udcff"


@pytest.mark.parametrize(
    "row",
    [
        "001",
        {"key": "001"},
        begun("001", more=None),
        begun(None),
        begun("001", short=["a"]),
        begun("001", seconds=None),
        begun("001", seconds="1"),
        begun("001", model="x{"),
        begun("001", settings="[1]"),
    ],
    ids=str,
)
def test_a_journal_of_something_else_ends_where_that_begins(tmp_path: Path, row: Any) -> None:
    folder, path = make_folder(tmp_path / "pictures", 3), tmp_path / "pictures.captions.jsonl"
    lines = [[begun("000", error="no caption")], [row], [begun("002", error="no caption")]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row["key"] for row in Journal(path).rows] == ["000"]
    assert str(run(folder, tmp_path)).startswith("2 pictures captioned, 0 were there, 1 without a caption")


def test_seconds_that_nobody_noted_are_none(tmp_path: Path) -> None:
    folder, path = make_folder(tmp_path / "pictures", 3), tmp_path / "pictures.captions.parquet"
    run(folder, tmp_path, kinds=["short"])
    write_rows(path, [row | {"seconds": None} for row in read_rows(path)])
    assert str(run(folder, tmp_path)).startswith("3 pictures captioned")
    assert all(row["seconds"] >= 0 for row in read_rows(path))


def test_a_full_disk_ends_it_in_one_line_and_what_was_written_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "x.jsonl")
    journal.append([[begun("a")]])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FullDiskError, match=r"no space left to write .*x.jsonl"):
            journal.append([[begun("b")]])
    journal.append([[begun("b")]])
    assert [row["key"] for row in Journal(tmp_path / "x.jsonl").rows] == ["a", "b"]


def test_two_jobs_do_not_write_the_same_captions(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "pictures", 3), tmp_path / "out"

    def fail(grey: int) -> Any:
        with pytest.raises(UsageError, match="is being written by another process"):
            run(folder, out)

    assert str(run(folder, out, Grey(fail=fail), kinds=["short"])) == "3 pictures captioned, 0 were there"


def test_processes_share_the_shards_out(tmp_path: Path) -> None:
    (tmp_path / "shards" / "more").mkdir(parents=True)
    for i in range(3):
        make_shard(tmp_path / "shards" / ("more" if i == 2 else "") / f"{i}.tar", 10 * i, 4)
    parts = [Grey(), Grey()]
    told = [str(run(tmp_path / "shards", tmp_path / "out", parts[i], rank=i, world=2)) for i in (0, 1)]
    asked = [{grey for _, grey in part.asked} for part in parts]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == {10 * i + j for i in range(3) for j in range(4)}
    assert told[1] == "process 2 of 2: 4 pictures captioned, 0 were there"
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet")}
    assert names == {"0.captions.parquet", "1.captions.parquet", "more/2.captions.parquet"}


def test_large_folders_are_cut_by_keys_that_never_move(tmp_path: Path) -> None:
    names = [part_of(str(i), num_parts(tmp_path, 3500)) for i in range(3500)]
    assert num_parts(tmp_path, 3500) == 4
    assert all(750 < names.count(f"pictures-{i:05d}-of-00004") < 1000 for i in range(4))
    (tmp_path / "pictures-00002-of-00004.captions.parquet").touch()
    assert num_parts(tmp_path, 90_000) == 4
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "pictures.captions.jsonl").touch()
    assert num_parts(tmp_path / "killed", 1001) == 1
    assert num_parts(tmp_path / "other", 1000) == 1
    assert part_of("x", 1) == "pictures"


def test_keys_that_are_not_utf8_are_known_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", 1)
    try:
        os.rename(os.fsencode(folder) + b"/000.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    run(folder, tmp_path / "out")
    assert rows(tmp_path / "out" / "pictures.captions.parquet")[0]["key"] == "\\udcff"
    assert str(run(folder, tmp_path / "out")) == "0 pictures captioned, 1 were there"


def test_scenes_are_captioned_as_they_are_counted(tmp_path: Path) -> None:
    job = Job(Grey(), ["short"], tmp_path)
    job.run(units_of("shapes", tmp_path, count=3, size=16))
    found = rows(tmp_path / "shapes-00000.captions.parquet")
    assert [row["key"] for row in found] == ["000000000", "000000001", "000000002"]
    assert all(row["alt"] and row["short"] for row in found)
    with pytest.raises(UsageError, match="say how many scenes with --count"):
        units_of("shapes", tmp_path)
    with pytest.raises(UsageError, match="--count=3 is for shapes"):
        units_of(str(make_folder(tmp_path / "x", 1)), tmp_path, count=3)
    with pytest.raises(DataError, match="shaeps does not exist, did you mean 'shapes'"):
        units_of("shaeps", tmp_path)


def test_captions_by_kind_of_a_shard_give_its_alt(tmp_path: Path) -> None:
    own = json.dumps({"captions": {"alt": ["img 001", "cube"], "short": "a cube"}}).encode()
    make_tar(tmp_path / "0.tar", [("a.png", picture(1)), ("a.json", own), ("b.png", picture(2)), ("b.json", b"{")])
    run(tmp_path / "0.tar", tmp_path)
    assert [row["alt"] for row in rows(tmp_path / "0.captions.parquet")] == ["img 001\ncube", None]


def test_a_caption_of_several_lines_stays_one(tmp_path: Path) -> None:
    own = json.dumps({"caption": " A red cube.\n\nIt stands\u2028on  grass.\n"}).encode()
    make_tar(tmp_path / "0.tar", [("a.png", picture(1)), ("a.json", own)])
    run(tmp_path / "0.tar", tmp_path)
    assert [row["alt"] for row in rows(tmp_path / "0.captions.parquet")] == ["A red cube. It stands on grass."]
    assert alt_of({"alt": ["one\r\ntwo", " \n ", "three"]}) == "one two\nthree"
    assert alt_of({"alt": [" \n "]}) is None


@pytest.mark.parametrize("batch_size", [8, 48, 63, 64])
def test_no_more_than_64_pictures_are_not_on_the_disk(tmp_path: Path, batch_size: int) -> None:
    folder, journal, lost = make_folder(tmp_path / "pictures", 200), tmp_path / "pictures.captions.jsonl", list[int]()

    class Watched(Grey):
        def caption(self, images: Sequence[Image.Image], kind: str, seeds: Sequence[int]) -> list[Any]:
            texts = super().caption(images, kind, seeds)
            lost.append(len(self.asked) - len(Journal(journal).rows))
            return texts

    run(folder, tmp_path, Watched(), kinds=["short"], batch_size=batch_size)
    assert FLUSH - batch_size < max(lost) <= FLUSH


@pytest.mark.parametrize("batch_size", [0, 65])
def test_a_batch_has_no_more_than_a_kill_may_lose(tmp_path: Path, batch_size: int) -> None:
    with pytest.raises(UsageError, match=f"batch_size must be from 1 to 64, got {batch_size}$"):
        Job(Grey(), KINDS, tmp_path, batch_size=batch_size)


def test_kills_lose_little_and_repeat_nothing() -> None:
    told = kill(num=3, seed=0, shards=4, pictures=150, longest=0.5)
    assert told["hit"] == 3
    assert told["kept"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 48])
def test_twenty_kills_lose_little_and_repeat_nothing(batch: int) -> None:
    told = kill(num=20, seed=1, pictures=1000, batch=batch)
    assert told["hit"] == 20
    assert told["kept"] > 5
    assert told["asked"] > told["captions"]


def test_without_pyarrow_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r'pip install "t2i\[data\]"$'):
        Job(Grey(), KINDS, tmp_path)
