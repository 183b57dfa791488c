"""Seconds for a picture of each size, once the model is open, and for a render; medians, and the memory they took.

python examples/11_how_fast.py --num 5
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

import t2i
from t2i.core.devices import device_of
from t2i.data import shapes
from t2i.train.log import memory_gb


def seconds(what: str, do: Callable[[int], object], num: int) -> None:
    """Print the median of `num` runs; `do` is told which it is, and 0 comes once before, to warm up."""
    times = []
    for i in range(num + 1):
        start = perf_counter()
        do(i)
        times.append(perf_counter() - start)
    print(f"{what:<32} {median(times[1:]):7.2f} s   ({min(times[1:]):.2f} … {max(times[1:]):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="a red cube")
    parser.add_argument("--model", default="shapes", help="a name or a folder")
    parser.add_argument("--num", type=int, default=5, help="runs of which the median is told")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    device = device_of(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    pipe = t2i.Pipeline.from_pretrained(args.model, device=device)
    for stage in (name for name in pipe.sampled if name in pipe.parts and name != "prior"):
        size = pipe.parts[stage].config.image_size
        seconds(
            f"picture of {size} px",
            lambda i, s=stage: pipe(args.prompt, seed=i, stop_after=s, progress=False),
            args.num,
        )
    print(f"memory at most {memory_gb(device):.2f} GB")
    seconds("100 renders of 64 px", lambda i: shapes.batch(range(100 * i, 100 * i + 100), 64), args.num)
    seconds("render of 1024 px", lambda i: shapes.batch([i], 1024), args.num)


if __name__ == "__main__":
    main()
