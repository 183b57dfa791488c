"""Running a script as its own process, without the seconds that importing torch takes: a server has it imported, and
forks."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = [
    "torch._dynamo",
    "accelerate",
    "transformers",
    "open_clip",
    "matplotlib.pyplot",
    "t2i.run",
    "t2i.pipelines.dalle2",
]


def run_script(script: Path, arguments: Sequence[object], cwd: Path, seconds: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a Python script, on one thread, with a home of its own and no other settings."""
    SERVER.set_forkserver_preload(PRELOADED)
    out, err = cwd / ".stdout", cwd / ".stderr"
    process = SERVER.Process(target=_run, args=(str(script), [*map(str, arguments)], str(cwd), str(out), str(err)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    for path in (out, err):
        path.unlink(missing_ok=True)
    return process.exitcode or 0, texts[0], texts[1]


def _run(script: str, arguments: list[str], cwd: str, out: str, err: str) -> None:
    import torch

    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ |= {"HOME": cwd, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
