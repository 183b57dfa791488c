"""Measure what DALL-E 2's manipulations of pictures keep and what they change, with a reader of scenes as the judge.

python examples/08_measure_manipulations.py --num 4

On held-out renders of one thing, all at the decoder's size: how near a picture comes back, by steps; whether variations
show the same thing and are other pictures; whether interpolations begin and end where they should; whether a text diff
from "a red cube" to "a blue cube" turns the colour, and leaves shape and place.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from itertools import count, islice
from statistics import mean
from typing import Any

import torch
from PIL import Image

import t2i
from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.evals.compose import load_reader
from t2i.evals.report import wilson
from t2i.io.images import from_pil, to_pil
from t2i.pipeline.inputs import Latent
from t2i.stages.reader.model import Detection, Reader

Rendered = tuple[shapes.Thing, Image.Image]
How = dict[str, Any]  # arguments of a call that all have


def held_out(num: int, first: int, colour: str | None = None) -> list[Rendered]:
    """Things, each alone in a scene that no training saw, of a colour if asked for, and renders of them."""
    every = (shapes.scene_from_seed(seed | VAL_SCENES, {1: 1.0}) for seed in count(first))
    scenes = list(islice((s for s in every if colour in (None, s.things[0].colour)), num))
    return list(zip([scene.things[0] for scene in scenes], to_pil(shapes.render(scenes, 64)), strict=True))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, of pictures with a range of 2."""
    return 10 * math.log10(4 / max(float((from_pil(a) - from_pil(b)).square().mean()), 1e-12))


def readings(reader: Reader, pictures: Iterable[Image.Image]) -> list[list[Detection]]:
    return reader.read(torch.stack([from_pil(picture) for picture in pictures]))


def alone(found: Sequence[Detection], shape: str, colour: str) -> bool:
    """Whether a picture shows this thing and nothing else."""
    return [(thing.shape, thing.colour) for thing in found] == [(shape, colour)]


def row(what: str, value: object, goal: str = "") -> None:
    print(f"{what:<64}{value!s:>22}   {goal}", flush=True)


def share(good: Sequence[bool]) -> str:
    s = wilson(sum(good), len(good))
    return f"{s.correct} of {s.total} ({s.low:.0%} … {s.high:.0%})"


def reconstructions(pipe: t2i.Pipeline, pictures: Sequence[Image.Image], all_steps: Sequence[int], how: How) -> None:
    for steps in all_steps:
        for corrections in (0, 1):
            latent = pipe.encode(pictures, steps=steps, corrections=corrections, progress=False)
            back = pipe.reconstruct(latent, **how | {"steps": {"decoder": steps}})
            values = [psnr(a, b) for a, b in zip(pictures, back, strict=True)]
            label = f"reconstruction, {steps} steps, {corrections} corrections, spread of x_T {latent.x_T.std():.2f}"
            goal = "30 dB at 50 steps" if (steps, corrections) == (50, 0) else ""
            row(label, f"{mean(values):.1f} dB, worst {min(values):.1f}", goal)


def variations(
    pipe: t2i.Pipeline, reader: Reader, rows: Sequence[Rendered], latent: Latent, num: int, how: How
) -> None:
    for guidance in (1.0, None):
        for eta in (0.5, 1.0):
            drawn = pipe.variations(latent, num, eta=eta, guidance=guidance, **how)
            sources = [pair for pair in rows for _ in range(num)]
            found = zip(readings(reader, drawn), sources, strict=True)
            kept = [alone(f, thing.shape, thing.colour) for f, (thing, _) in found]
            far = mean([psnr(picture, b) for (_, picture), b in zip(sources, drawn, strict=True)])
            label = "the model's guidance" if guidance is None else "no guidance"
            row(f"variations, eta {eta}, {label}: same thing ({far:.1f} dB from it)", share(kept), "90 %")


def interpolations(pipe: t2i.Pipeline, pictures: Sequence[Image.Image], latent: Latent, how: How) -> None:
    ends, cosines = [], []
    for i in range(len(pictures) - 1):
        drawn = pipe.interpolate(latent[i : i + 1], latent[i + 1 : i + 2], 3, **how)
        ends += [psnr(pictures[i], drawn[0]), psnr(pictures[i + 1], drawn[2])]
        middle = pipe.embed(drawn[1])
        cosines += [float((middle @ latent.z_i[j])[0]) for j in (i, i + 1)]
    if ends:
        row("interpolation: ends", f"{mean(ends):.1f} dB, worst {min(ends):.1f}", "as reconstruction")
        row("interpolation: cosine of what is drawn midway with both ends", f"{mean(cosines):.2f}")


def text_diffs(
    pipe: t2i.Pipeline, reader: Reader, rows: Sequence[Rendered], latent: Latent, theta: float, how: How
) -> None:
    names = [thing.shape for thing, _ in rows]
    before = readings(reader, [picture for _, picture in rows])
    for guidance in (1.0, 2.0):
        turned = how | {"theta": theta, "n": 1, "guidance": guidance}
        drawn = [
            pipe.text_diff(latent[i : i + 1], f"a red {n}", f"a blue {n}", **turned)[0] for i, n in enumerate(names)
        ]
        after = readings(reader, drawn)
        label = f"text diff red to blue, theta {theta}, guidance {guidance:g}:"
        row(f"{label} blue", share([bool(f) and f[0].colour == "blue" for f in after]), "80 %")
        same = [bool(f) and f[0].shape == n for f, n in zip(after, names, strict=True)]
        row(f"{label} same shape", share(same), "80 %")
        place = [bool(f and b) and f[0].box.overlap(b[0].box) > 0.5 for f, b in zip(after, before, strict=True)]
        row(f"{label} same place", share(place), "80 %")
        whole = [alone(f, n, "blue") for f, n in zip(after, names, strict=True)]
        row(f"{label} all of it, and nothing else", share(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="a name or a folder")
    parser.add_argument("--num", type=int, default=4, help="pictures")
    parser.add_argument("--num-variations", type=int, default=2, help="of each picture")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100], help="of the reconstructions")
    parser.add_argument("--main-steps", type=int, default=50, help="of everything else")
    parser.add_argument("--theta", type=float, default=0.5, help="of the text diff")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pipe = t2i.Pipeline.from_pretrained(args.model)
    reader = load_reader(pipe.device)
    how = {"steps": {"decoder": args.main_steps}, "seed": args.seed, "stop_after": "decoder", "progress": False}

    rows = held_out(args.num, args.seed)
    pictures = [picture for _, picture in rows]
    reconstructions(pipe, pictures, args.steps, how)
    latent = pipe.encode(pictures, steps=args.main_steps, progress=False)
    variations(pipe, reader, rows, latent, args.num_variations, how)
    interpolations(pipe, pictures, latent, how)

    rows = held_out(args.num, args.seed, "red")
    latent = pipe.encode([picture for _, picture in rows], steps=args.main_steps, progress=False)
    text_diffs(pipe, reader, rows, latent, args.theta, how)


if __name__ == "__main__":
    main()
