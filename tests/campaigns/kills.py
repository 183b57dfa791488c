"""Kills whatever writes at random moments, runs it again, and looks for what was lost, doubled or left behind.

    python tests/campaigns/kills.py --num 100 --seed 0          # a table, and every failure with its number
    python tests/campaigns/kills.py --seed 0 --only 17          # one round again

A round kills one of: training in one process, with loader processes, in two processes; `assemble` and `convert` over an
earlier model; `data shapes` and `data encode`. Then it runs to the end, and must leave what an undisturbed run leaves,
to the bit. While the first of a round runs, a second writer tries the same folder now and then, and must be refused.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STEPS = {"steps": 12, "save_every": 2, "val_every": 2, "sample_every": 2, "log_every": 1}
TIMES = ("img_per_s", "memory_gb", "data_fraction", "minutes")  # of a row
Work = Callable[[Path, Path, int, dict[str, str]], None]


def train(sources: Path, out: Path, rank: int, environment: dict[str, str], **changes: Any) -> None:
    from tiny_run import child

    child(out, out.with_suffix(".txt"), environment, -1, -1, STEPS | changes)


def train_with_loaders(sources: Path, out: Path, rank: int, environment: dict[str, str]) -> None:
    train(sources, out, rank, environment, folder=str(sources / "pictures"))


def assemble(sources: Path, out: Path, rank: int, environment: dict[str, str]) -> None:
    from t2i.pipelines.adm import ADM

    stages = {name: sources / "new" / name for name in ("decoder", "classifier")}
    ADM.assemble(stages, {"steps": {"decoder": 4}}).save_pretrained(out)


def convert(sources: Path, out: Path, rank: int, environment: dict[str, str]) -> None:
    from t2i.convert.convert import convert_files

    convert_files([sources / "old.pth"], out, given=["era=C"])


def shapes(sources: Path, out: Path, rank: int, environment: dict[str, str]) -> None:
    from t2i.data.shapes.write import write_shards

    write_shards(out, count=48, size=16, shard_size=8)


def encode(sources: Path, out: Path, rank: int, environment: dict[str, str]) -> None:
    from small import Codec, t5

    from t2i.data.encode import Scenes
    from t2i.data.encode import encode as write

    write(out, Scenes(16, 48), Codec(), t5(), shard_size=8, batch_size=4)


@dataclass(frozen=True)
class Kind:
    """Something that writes; `before` is what lies in its folder, `world` how many processes it has."""

    work: Work
    before: str | None = None
    world: int = 1


KINDS = {
    "train": Kind(train),
    "train, loaders": Kind(train_with_loaders),
    "train, 2 processes": Kind(train, world=2),
    "assemble": Kind(assemble, "old"),
    "convert": Kind(convert, "stage"),
    "data shapes": Kind(shapes),
    "data encode": Kind(encode),
}


def prepare(sources: Path) -> None:
    """What the kinds read, and what lies in their folders before."""
    import torch
    from golden_tools import fill_state_dict, load_case
    from PIL import Image
    from small import adm, classifier

    from t2i.convert.convert import convert_files

    (sources / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, i, i)).save(sources / "pictures" / f"{i}.png")
        (sources / "pictures" / f"{i}.txt").write_text("grey")
    adm(classifier=classifier()).save_pretrained(sources / "old")
    model = adm(classifier=classifier())
    with torch.no_grad():
        for part in model.parts.values():
            for parameter in part.parameters():
                parameter.add_(1)
    model.save_pretrained(sources / "new")
    for name, era in (("old", "c"), ("new", "d")):
        case = load_case("unclip_nets.json", f"dev-d2p-prior-era-{era}")["weights"][0]
        torch.save(fill_state_dict(case["keys"], case["overrides"]), sources / f"{name}.pth")
    convert_files([sources / "new.pth"], sources / "stage")


def quiet(work: Work, sources: Path, out: Path, rank: int, environment: dict[str, str], began: Any) -> None:
    """A process of its own; its exit code is 2 for a usage error, as of the command."""
    from t2i.core.errors import T2IError

    log = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    began.set()
    try:
        work(sources, out, rank, environment)
    except T2IError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def start(kind: Kind, sources: Path, out: Path) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "accelerate", "tiny_run", "small", "t2i.convert.convert"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(kind.world):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.world, "LOCAL_WORLD_SIZE": kind.world}
        environment = address | {name: str(number) for name, number in numbers.items()} if kind.world > 1 else {}
        began = context.Event()
        arguments = (kind.work, sources, out, rank, environment, began)
        processes.append(context.Process(target=quiet, args=arguments))
        processes[-1].start()
        began.wait(60)
    return processes


def finish(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def content(folder: Path) -> dict[str, Any]:
    """What a folder holds by path: bytes of weights and pictures, rows without their times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        elif path.name in (
            "run.json",
            "state.json",
            "manifest.json",
            "inputs.png",
        ):  # with times, paths, or of a resume
            found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


def attempt(kind: Kind, draw: random.Random, sources: Path, expected: dict[str, Any], seconds: float) -> Counter[str]:
    """One round: `hit` if something was killed, `refused` if a second writer was, and everything that went wrong."""
    told = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        out = Path(folder) / "out"
        if kind.before:
            shutil.copytree(sources / kind.before, out)
        processes = start(kind, sources, out)
        time.sleep(draw.uniform(0, seconds))
        if draw.random() < 0.3 and (out / ".t2i.lock").exists():
            second = finish(start(Kind(kind.work), sources, out))
            if all(process.is_alive() for process in processes):
                told["refused" if second == [2] else f"a second writer ended with {second}"] += 1
        for process in processes:
            process.kill()
        told["hit"] += any(finish(processes))
        if codes := [code for code in finish(start(kind, sources, out)) if code]:
            told[f"ended with {codes}: {out.with_suffix('.txt').read_text()[-300:]!r}"] += 1
        found = content(out)
        for path in sorted(found.keys() | expected.keys()):
            if (path in found) != (path in expected):
                told[f"{path} is {'left' if path in found else 'lost'}"] += 1
            elif found[path] != expected[path]:
                told[f"{path} differs"] += 1
    return told


def undisturbed(kind: Kind, sources: Path) -> tuple[dict[str, Any], float]:
    """What a run leaves that nobody kills, and the seconds that it takes."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        out = Path(folder) / "out"
        if kind.before:
            shutil.copytree(sources / kind.before, out)
        processes = start(kind, sources, out)
        before = time.perf_counter()  # once they live: starting the first takes long
        codes = finish(processes)
        assert not any(codes), out.with_suffix(".txt").read_text()
        return content(out), time.perf_counter() - before


def main(num: int, seed: int, only: int | None = None) -> int:
    """The number of rounds in which something went wrong."""
    table = {name: Counter[str]() for name in KINDS}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        prepare(sources := Path(folder))
        numbers = range(num) if only is None else [only]
        whole: dict[str, tuple[dict[str, Any], float]] = {}
        for number in numbers:
            name = list(KINDS)[number % len(KINDS)]
            if name not in whole:
                whole[name] = undisturbed(KINDS[name], sources)
            told = attempt(KINDS[name], random.Random(f"{seed} {number}"), sources, *whole[name])
            problems = [problem for problem in told if problem not in ("hit", "refused")]
            table[name] += Counter(rounds=1, failed=bool(problems), hit=told["hit"], refused=told["refused"])
            for problem in problems:
                print(f"round {number}, {name}: {problem}", flush=True)
    columns = ("rounds", "hit", "refused", "failed")
    print(f"{'':20}", *(f"{column:>8}" for column in columns))
    for name, counts in table.items():
        print(f"{name:20}", *(f"{counts[column]:8}" for column in columns))
    return sum(counts["failed"] for counts in table.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one round by its number")
    chosen = parser.parse_args()
    sys.exit(bool(main(chosen.num, chosen.seed, chosen.only)))
