"""Kills two processes that caption shards, one after the other, and looks for captions that were lost or written twice.

python tests/campaigns/caption_kills.py --num 20 --seed 0
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from files_of_data import make_shard

WORLD = 2
SECONDS = 0.002  # that a caption takes


class Slow:
    """Tells a picture by its grey and its seed; notes every picture that it is shown."""

    name, revision, settings = "slow", "1", {"short": {}, "descriptive": {}}

    def __init__(self, log: Path) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def caption(self, images: Sequence[Any], kind: str, seeds: Sequence[int]) -> list[str]:
        time.sleep(SECONDS * len(images))
        greys = [image.getpixel((0, 0))[0] for image in images]
        os.write(self.log, "".join(f"{kind} {seed}\n" for seed in seeds).encode())
        first = f"batch of {len(images)} from {greys[0]}"
        return [f"{kind} {grey} {seed} {first}" for grey, seed in zip(greys, seeds, strict=True)]


def work(shards: Path, out: Path, log: Path, batch: int, rank: int, began: Any) -> None:
    from t2i.data.caption.job import Job
    from t2i.data.caption.units import units_of

    os.dup2(os.open(f"{log}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    began.set()
    job = Job(Slow(log), ("short", "descriptive"), out, batch_size=batch, rank=rank, world=WORLD)
    job.run(units_of(str(shards), out))


def start(shards: Path, out: Path, log: Path, batch: int) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["t2i.data.caption.job", "t2i.data.caption.units", "pyarrow.parquet"])
    processes = []
    for rank in range(WORLD):
        began = context.Event()
        processes.append(context.Process(target=work, args=(shards, out, log, batch, rank, began)))
        processes[-1].start()
        began.wait(60)
    return processes


def on_disk(out: Path) -> set[str]:
    """`kind seed` of every caption that a killed run has left."""
    from t2i.data.caption.captioner import seed_of
    from t2i.data.caption.store import JOURNAL, SUFFIX, Journal, read_rows

    rows = [row for path in sorted(out.rglob(f"*{SUFFIX}")) for row in read_rows(path)]
    rows += [row for path in out.rglob(f"*{JOURNAL}") for row in Journal(path).rows]
    return {f"{kind} {seed_of(0, row['key'], kind)}" for row in rows for kind in ("short", "descriptive") if row[kind]}


def content(out: Path) -> dict[str, bytes]:
    """Every file, of captions without the column of seconds."""
    import pyarrow.parquet as pq

    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        found[str(path.relative_to(out))] = data = io.BytesIO(path.read_bytes())
        if path.suffix == ".parquet":
            table = pq.read_table(data).drop_columns(["seconds"])
            pq.write_table(table, data := io.BytesIO())
        found[str(path.relative_to(out))] = data.getvalue()
    return found


def finish(processes: list[Any], log: Path) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * WORLD, Path(f"{log}.txt").read_text()


def main(
    num: int, seed: int, shards: int = 6, pictures: int = 600, longest: float = 0.8, batch: int = 8
) -> dict[str, int]:
    """How many kills hit, how many of the killed runs left new captions, how many were asked for, and how many there
    are; asserts that none that was on the disk was asked for again, and that all files are those of an undisturbed
    run."""
    draw, told = random.Random(seed), {"hit": 0, "kept": 0, "asked": 0, "captions": 2 * shards * pictures}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root = Path(folder)
        (root / "shards" / "more").mkdir(parents=True)
        for i in range(shards):
            make_shard(root / "shards" / ("more" if i % 2 else "") / f"{i:05d}.tar", 1000 * i, pictures)
        finish(start(root / "shards", root / "whole", root / "quiet", batch), root / "quiet")
        for _ in range(num):
            before, log = on_disk(root / "out"), root / "asked"
            log.write_text("")
            processes = start(root / "shards", root / "out", log, batch)
            if draw.random() < 0.9:  # after the first caption, or, now and then, before
                while not log.stat().st_size and any(process.is_alive() for process in processes):
                    time.sleep(0.002)
            time.sleep(draw.uniform(0, longest))
            told["hit"] += any(process.is_alive() for process in processes)
            for process in draw.sample(processes, WORLD):  # the other works on for a while
                process.kill()
                process.join()
                time.sleep(draw.choice((0, longest / 8)))
            asked = log.read_text().splitlines()
            told["asked"] += len(asked)
            told["kept"] += bool(on_disk(root / "out") - before)
            assert not before & set(asked), "a caption that was on the disk was written again"
            lost = set(asked) - on_disk(root / "out")
            assert len(lost) <= WORLD * 2 * 64, f"{len(lost)} captions lost"
        log.write_text("")
        finish(start(root / "shards", root / "out", log, batch), log)
        told["asked"] += len(log.read_text().splitlines())
        assert content(root / "out") == content(root / "whole")
        assert len(on_disk(root / "out")) == told["captions"]
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    chosen = parser.parse_args()
    print(json.dumps(main(chosen.num, chosen.seed, batch=chosen.batch)))
