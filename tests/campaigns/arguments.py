"""Random argument lists, commands, configs, recipes and model folders: each is done, or refused in one line.

    python tests/campaigns/arguments.py --num 10000 --seed 0
    python tests/campaigns/arguments.py --only 1234            repeat one case, with its traceback

Every case follows from its number alone. A failure is any error but a T2IError (or SystemExit of the command line with
a documented code and one line), more than 20 seconds, or more than 2 GB beyond what the process had at its start.
"""

import argparse
import json
import math
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import conftest
import numpy as np
import small
import torch
from PIL import Image, PngImagePlugin

from t2i.cli import main as command
from t2i.core.errors import T2IError
from t2i.io.provenance import read_recipe
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import load_run
from t2i.stages.registry import load_stage

SECONDS, BYTES = 20.0, 2 * 2**30
CODES = (0, 2, 3, 4, 5)
ODD: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 1, lambda: 2, lambda: 3, lambda: 10**9, lambda: 10**30,
    lambda: 2**70, lambda: -(2**70), lambda: 10**400, lambda: 10**5000, lambda: 1.5, lambda: math.nan, lambda: math.inf,
    lambda: 1e308, lambda: 1j, lambda: "", lambda: "x", lambda: "a\0b", lambda: "\ud800", lambda: "x" * 10_000,
    lambda: "2", lambda: "ddim2", lambda: "1,1", lambda: "fast27", lambda: b"x", lambda: [], lambda: [1], lambda: ["x"],
    lambda: [None], lambda: [[1]], lambda: {}, lambda: {"x": 1}, lambda: {1: 2}, lambda: {"decoder": 2},
    lambda: {"prior": "x", "decoder": None}, lambda: {1, 2}, lambda: (x for x in "ab"), lambda: range(10**30), print,
    lambda: Path("nosuch"), lambda: Path("a\0b"), lambda: np.int64(2), lambda: np.zeros(3), lambda: torch.tensor(2),
    lambda: torch.zeros(2, 16), lambda: torch.ones(1, 16).div(4), lambda: torch.zeros(1, 16, device="meta"),
    lambda: Image.new("RGB", (32, 32)), lambda: Image.new("L", (32, 32)), lambda: Image.new("RGB", (0, 0)),
    lambda: Image.new("RGB", (3, 50)), lambda: "a red cube", lambda: ["a cube", "a red cube"], lambda: "decoder",
    lambda: "ddim", lambda: object(), lambda: torch.float16, lambda: "cpu", lambda: Ellipsis,
]  # fmt: skip
"""What may be given for anything."""
NAMES = (
    "seed", "steps", "guidance", "sampler", "stop_after", "max_batch", "max_tile", "progress", "callback",
    "negative_prompt", "num_images_per_prompt", "num_images", "eta", "strength", "blend", "method", "height",
)  # fmt: skip
TASKS: dict[str, tuple[str, ...]] = {
    "__call__": ("subject",), "variations": ("image", "n"), "interpolate": ("a", "b", "n"), "embed": ("image",),
    "text_diff": ("image", "before", "after"), "probe": ("image", "embeddings", "components"), "encode": ("image",),
    "decode": ("embeddings", "prompt"), "reconstruct": ("image",), "inpaint": ("image", "mask", "prompt"),
    "edit": ("image", "prompt", "strength"), "upsample": ("image",), "to": ("device", "dtype"), "use_preset": ("p",),
    "save_pretrained": ("folder",),
}  # fmt: skip
OPTIONS = {
    "generate": "--model --seed --num --steps --guidance --sampler --negative --image --mask --strength --stop-after "
    "--max-tile --from --device --dtype --preset --out --height",
    "variations": "--model --seed --num --steps --guidance --eta --stop-after --device --dtype --out",
    "interpolate": "--model --seed --num --steps --noise --stop-after --out",
    "text-diff": "--model --from-text --to-text --theta --num --seed --out",
    "upsample": "--model --start-at --seed --steps --sampler --max-tile --out",
    "assemble": "--kind --dtype --steps --guidance --sampler",
    "info": "",
}
KEYS = (
    "stage", "preset", "clip", "needs", "needs.clip", "init", "save_dtype", "model", "task", "data", "train", "optim",
    "train.steps", "train.batch_size", "train.out", "train.seed", "train.ema", "train.device", "train.num_threads",
    "train.max_minutes", "data.source", "data.size", "data.crop", "data.captions", "data.num_things",
    "data.num_workers", "data.val_fraction", "optim.lr", "optim.betas", "optim.only", "model.image_size",
    "model.diffusion", "model.ports", "model.unet", "task.sampling", "stage.x", "x.y", "model.unet.channels.x",
)  # fmt: skip
TEXTS = (
    "", "x", "0", "-1", "1e308", "1e5", "10000000000000", "null", "true", "[]", "[1]", "{}", "{x: 1}", "{1: 2}", "nan",
    ".inf", "!!timestamp 2020-01-01", "!!binary aGk=", "!!set {a}", "!!python/tuple [1]", '"a\\0b"', "[[1]]", "'",
    "&a [*a]", "2020-01-01", "decoder", "shapes", "ddim50", "../x", "~", "=", "1:30", "0x10", "!!timestamp x",
)  # fmt: skip
VALUES = (*TEXTS, "a red cube", "decoder=2", "decoder=x", "prior=1,decoder=1", "cpu", "float16", "cuda", "out.png", "7")


@cache
def pipelines() -> list[Any]:
    """Tiny ones of every kind, with random weights."""
    dalle2 = DALLE2(
        {
            "clip": conftest.small_clip(),
            "prior": conftest.small_prior(),
            "decoder": conftest.small_decoder(),
            "up256": conftest.small_upsampler(32, 64),
        },
        {"steps": {"prior": 1, "decoder": 2, "up256": 1}},
        "small",
    )
    return [dalle2, small.glide(), small.ddpm(), small.adm()]


@cache
def home() -> Path:
    """A folder with the first of them, and a picture that it drew."""
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    pipelines()[0].save_pretrained(folder / "model")
    pipelines()[0]("a cube", seed=1, progress=False).save(folder / "drawn.png")
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    return folder


def call(rng: random.Random) -> None:
    """A method of a pipeline; what is needed is right more often than not."""
    pipe = rng.choice(pipelines())
    task = rng.choice([name for name in TASKS if hasattr(pipe, name)])
    picture = Image.new("RGB", (pipe.parts["decoder"].config.image_size,) * 2)
    right = {
        "subject": "a red cube" if pipe.subject == "prompt" else None, "image": picture, "a": picture, "b": "a cube",
        "n": 2, "before": "a cube", "after": "a red cube", "embeddings": torch.ones(1, 16).div(4), "components": [1],
        "prompt": "a cube", "mask": picture.convert("L"), "strength": 0.5, "device": "cpu", "dtype": "float32",
        "p": "karlo", "folder": home() / "saved",
    }  # fmt: skip
    given = [right[name] if rng.random() < 0.7 else rng.choice(ODD)() for name in TASKS[task]]
    more = {rng.choice(NAMES): rng.choice(ODD)() for _ in range(rng.randrange(3))}
    if task not in ("embed", "to", "use_preset", "save_pretrained"):
        more = {"progress": False, "steps": 2} | more
    elif task != "embed":
        more = {}
    try:
        getattr(pipe, task)(*given, **more)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error) and "multiple values for" not in str(error):
            raise
    finally:
        pipe.to("cpu", "float32", offload=False)


def opening(rng: random.Random) -> None:
    """`from_pretrained` and `load_stage` with anything."""
    more = {
        name: rng.choice(ODD)()
        for name in ("device", "dtype", "offload", "preset", "torch_dtype")
        if rng.random() < 0.3
    }
    name = home() / "model" if rng.random() < 0.5 else rng.choice(ODD)()
    load_stage(name) if rng.random() < 0.3 else Pipeline.from_pretrained(name, **{"device": "cpu", **more})


def cli(rng: random.Random) -> None:
    """A command with random options, in this process."""
    verb = rng.choice([*OPTIONS, "generate", "nosuch"])
    files = ["red.png", "drawn.png", "nosuch.png", "a cube", "3", "clip=x"]
    arguments = [verb, *(rng.choice(files) for _ in range(rng.randrange(3)))]
    options = {"--model": str(home() / "model"), "--out": "out.png"}
    if verb not in ("info", "assemble", "nosuch"):
        arguments += [x for pair in options.items() for x in pair]
    for option in rng.sample(OPTIONS.get(verb, "").split(), k=min(2, len(OPTIONS.get(verb, "").split()))):
        arguments += [option, rng.choice([*VALUES, *files])]
    run(arguments)


def run(arguments: list[str]) -> None:
    """A command line: a known exit code, and one line where it is not 0."""
    out, said, argv, code = StringIO(), StringIO(), sys.argv, None
    sys.argv = ["t2i", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(said):
            command.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error")]
    usage = "Usage:" in said.getvalue() + out.getvalue()
    assert code in CODES, f"exit code {code}"
    assert code == 0 or usage or len(lines) == 1, said.getvalue()[:500]
    if code:
        raise T2IError(" ".join(lines))


def config(rng: random.Random) -> None:
    """A bundled config with random overrides."""
    path = rng.choice(sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")))
    load_run(path, [f"{rng.choice(KEYS)}={rng.choice(TEXTS)}" for _ in range(rng.randrange(1, 4))])


def recipe(rng: random.Random) -> None:
    """`--from` with one or two values of a recipe replaced."""
    data = read_recipe(home() / "drawn.png")
    for _ in range(rng.randrange(1, 3)):
        mutate(rng, data)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("t2i", json.dumps(data))
    Image.open(home() / "red.png").save(home() / "crafted.png", pnginfo=text)
    run(["generate", "--from", str(home() / "crafted.png"), "--model", str(home() / "model"), "--out", "out.png"])


def folder(rng: random.Random) -> None:
    """A model folder with values of its JSON replaced."""
    source = home() / "model"
    path = rng.choice(sorted(source.rglob("*.json")))
    whole = path.read_bytes()
    try:
        data = json.loads(whole)
        mutate(rng, data)
        path.write_text(json.dumps(data))
        Pipeline.from_pretrained(source, device="cpu")
    finally:
        path.write_bytes(whole)


def mutate(rng: random.Random, data: Any) -> None:
    """Replace, drop or add one value somewhere."""
    while isinstance(data, dict) and data:
        key = rng.choice(sorted(data))
        if isinstance(data[key], dict) and data[key] and rng.random() < 0.8:
            data = data[key]
            continue
        odd = [
            None,
            True,
            -1,
            0,
            3,
            10**9,
            10**30,
            1.5,
            1e308,
            "",
            "x",
            "a\0b",
            [],
            [1],
            ["x"],
            {},
            {"x": 1},
            "x" * 9999,
        ]
        if rng.random() < 0.1:
            del data[key]
        else:
            data[rng.choice(["nosuch", "callback"]) if rng.random() < 0.1 else key] = rng.choice(odd)
        return


KINDS: dict[str, tuple[Callable[[random.Random], None], int]] = {
    "call": (call, 6), "opening": (opening, 1), "cli": (cli, 2), "config": (config, 5), "recipe": (recipe, 2),
    "folder": (folder, 2),
}  # fmt: skip
"""What is tried, and how often."""


def case(number: int) -> tuple[str, str]:
    """The kind of a case, and "done", "refused" or what is wrong with it."""
    rng = random.Random(number)
    kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    start, verdict = time.perf_counter(), "done"
    try:
        KINDS[kind][0](rng)
    except T2IError as error:
        verdict = "refused" if "\n" not in str(error) else f"several lines: {str(error)[:200]!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        verdict = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:150]!r}"
    seconds = time.perf_counter() - start
    return kind, verdict if seconds < SECONDS else f"{seconds:.0f} seconds"


def prepare() -> None:
    """Models, a memory limit, silence."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    home()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    """Run them, and say what went wrong; the number of failures, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="the number of one case, run with its traceback")
    chosen = parser.parse_args()
    prepare()
    if chosen.only is not None:
        rng = random.Random(chosen.only)
        KINDS[rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]][0](rng)
        return 0
    counts, failures = Counter[str](), 0
    for number in range(chosen.seed, chosen.seed + chosen.num):
        kind, verdict = case(number)
        counts[f"{kind} {verdict if verdict in ('done', 'refused') else 'FAILED'}"] += 1
        if verdict not in ("done", "refused"):
            failures += 1
            print(f"--only {number}  {kind}: {verdict}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
