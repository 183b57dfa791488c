"""Seconds for a 64 px picture by how torch's threads wait for each other, on an idle machine and beside busy processes.

    python examples/14_how_threads_wait.py --num 7 --busy 0 1 4

Between two operations OpenMP's threads spin, which is quickest while every core is theirs; where a core is shared, they
spin away the time of the one that they wait for. The command line therefore sets what `t2i.core.threads` says.
"""

import argparse
import os
import subprocess
import sys
from statistics import median
from time import perf_counter

SETTINGS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 10_000, 30_000, 100_000)},
}


def draw(num: int, model: str) -> None:
    """Print the seconds of `num` pictures; two come before, to warm up."""
    import t2i

    pipe, times = t2i.Pipeline.from_pretrained(model), []
    for seed in range(num + 2):
        start = perf_counter()
        pipe("a red cube", seed=seed, stop_after="decoder", progress=False)
        times.append(perf_counter() - start)
    print(median(times[2:]), min(times[2:]), max(times[2:]))


def measured(setting: dict[str, str], num: int, model: str) -> list[float]:
    """Median, least and most, of a process with that setting alone."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | setting
    command = [sys.executable, __file__, "--inside", "--num", str(num), "--model", model]
    return [float(x) for x in subprocess.check_output(command, env=environment, text=True).split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=7, help="pictures of which the median is told")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="processes that keep a core busy")
    parser.add_argument("--model", default="shapes", help="a name or a folder")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return draw(args.num, args.model)
    for busy in args.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            print(f"{os.cpu_count()} cores, {busy} busy with other things")
            for name, setting in SETTINGS.items():
                middle, least, most = measured(setting, args.num, args.model)
                print(f"  {name:<26} {middle:6.2f} s   ({least:.2f} … {most:.2f})", flush=True)
        finally:
            for other in others:
                other.kill()
                other.wait()


if __name__ == "__main__":
    main()
