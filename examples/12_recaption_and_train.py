"""The experiment of DALL-E 3's paper (Betker et al. 2023, sections 2 and 3): do better captions make better pictures?

python examples/12_recaption_and_train.py --count 20000 --steps 4000 --out recaption

Pictures with captions as careless as the web's (alt) are captioned anew by two captioners, short and descriptive. The
same generator learns from each blend, and draws held-out scenes, asked in their alt and in their descriptive captions.
CLIP score is 100 · cosine; the reader says how often all things of a scene are there, and nothing else. Writes
table.json and plot.png; intervals are of the mean over pictures, 95 %. The same command continues.
"""

import argparse
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image

from t2i.cli.caption import caption
from t2i.data import shapes, writing
from t2i.data.encode import Files, encode
from t2i.evals.compose import load_reader
from t2i.evals.report import Score
from t2i.io.files import output_folder
from t2i.io.images import from_pil, to_pil
from t2i.pipelines.dalle3 import DALLE3
from t2i.run import train
from t2i.stages.registry import load_stage

HELD_OUT = 1 << 40  # seeds of scenes that nothing is trained on
ARMS = {
    "100 % alt": {"alt": 1.0},
    "95 % short": {"short": 0.95, "alt": 0.05},
    **{f"{share} % descriptive": {"descriptive": share / 100, "alt": 1 - share / 100} for share in (65, 80, 90, 95)},
}
ASKED = ("alt", "descriptive")


def write_pictures(folder: Path, count: int, size: int, shard_size: int = 1000) -> None:
    """Renders with their alt captions and nothing else, in shards."""
    settings = f"alt, size {size}"
    with output_folder(folder):
        there = writing.lengths(folder, settings)
        for start in range(0, count, shard_size):
            seeds = range(start, min(count, start + shard_size))
            path = folder / f"{start // shard_size:05d}.tar"
            if there.get(path, 0) >= len(seeds):
                continue
            with writing.shard(path, settings, len(seeds)) as tar:
                for first in range(seeds.start, seeds.stop, 16):
                    drawn = shapes.batch(range(first, min(seeds.stop, first + 16)), size)
                    for i, image in enumerate(to_pil(drawn["image"])):
                        image.save(png := io.BytesIO(), "PNG")
                        words = {"captions": {"alt": drawn["captions"][i]["alt"]}}
                        files = {"png": png.getvalue(), "json": json.dumps(words).encode()}
                        writing.add(tar, f"{first + i:08d}", files)


class Judge:
    """CLIP and the reader over pictures of held-out scenes."""

    def __init__(self, num: int, size: int, clip: str) -> None:
        self.scenes = shapes.batch(range(HELD_OUT, HELD_OUT + num), size)
        self.clip: Any = load_stage(clip, expect="clip")
        self.reader = load_reader()

    def asked(self, kind: str) -> list[str]:
        return [captions[kind] for captions in self.scenes["captions"]]

    @torch.no_grad()
    def scores(self, pictures: list[Image], kind: str) -> dict[str, list[float]]:
        """Of every picture: CLIP score with its caption of a kind; 100 where the reader finds just what is there."""
        x = torch.stack([from_pil(picture) for picture in pictures])
        cosine = F.cosine_similarity(self.clip.encode_image(x), self.clip.encode_text(self.asked(kind)).pooled)
        found = [Counter((thing.colour, thing.shape) for thing in things) for things in self.reader.read(x)]
        scenes = [json.loads(scene) for scene in self.scenes["scene"]]
        there = [Counter((thing["colour"], thing["shape"]) for thing in scene["things"]) for scene in scenes]
        right = [100.0 * (a == b) for a, b in zip(found, there, strict=True)]
        return {"clip": (100 * cosine).tolist(), "right": right}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    mean, half, _ = Score.of(values)
    return mean, half


def plot(table: dict[str, dict[str, dict[str, tuple[float, float]]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, (what, title) in zip(axes, (("clip", "CLIP score"), ("right", "scenes drawn right, %")), strict=True):
        for kind in ASKED:
            means, halves = zip(*(row[kind][what] for row in table.values()), strict=True)
            axis.errorbar(range(len(table)), means, halves, fmt="o-", capsize=3, label=f"asked in {kind} captions")
        axis.set_xticks(range(len(table)), list(table), rotation=25, ha="right")
        axis.set_title(title)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/shapes-dalle3", help="folder with text, autoencoder, captioners")
    parser.add_argument("--clip", default="weights/shapes/clip", help="the judge")
    parser.add_argument("--count", type=int, default=20_000, help="pictures to learn from")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each blend")
    parser.add_argument("--num", type=int, default=128, help="held-out scenes that are drawn")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--out", type=Path, default=Path("recaption"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of configs/shapes/dalle3.yaml")
    args = parser.parse_args()
    model, pictures, latents = Path(args.model), args.out / "pictures", args.out / "latents"
    parts = {name: str(model / name) for name in ("text", "autoencoder")}
    write_pictures(pictures, args.count, args.size)
    writers = ",".join(f"{kind}={model / f'captioner-{kind}'}" for kind in ("short", "descriptive"))
    caption(str(pictures), writers, pictures, batch=32)
    encode(latents, Files(str(pictures), args.size), load_stage(parts["autoencoder"]))  # type: ignore[arg-type]
    judge, table = Judge(args.num, args.size, args.clip), {}
    for arm in args.arms:
        found: dict[str, dict[str, list[float]]] = {kind: {"clip": [], "right": []} for kind in ASKED}
        for seed in range(args.seeds):
            run = args.out / f"{arm.replace(' % ', '-')}-{seed}"
            needs = [f"needs.{name}={folder}" for name, folder in parts.items()]
            data = [f"data.source={latents}", f"data.captions={json.dumps(ARMS[arm])}", "task.cached=true"]
            how = [f"train.out={run}", f"train.seed={seed}", f"train.steps={args.steps}"]
            train("configs/shapes/dalle3.yaml", [*needs, *data, *how, *args.set])
            pipe = DALLE3.assemble({**parts, "decoder": run})
            for kind in ASKED:
                drawn = pipe(judge.asked(kind), seed=1000 * seed, progress=False)
                for what, values in judge.scores(drawn.images, kind).items():
                    found[kind][what] += values
        table[arm] = {kind: {what: interval(values) for what, values in found[kind].items()} for kind in ASKED}
        for kind, row in table[arm].items():
            print(arm, f"asked in {kind}:", ", ".join(f"{what} {m:.1f} ± {h:.1f}" for what, (m, h) in row.items()))
    (args.out / "table.json").write_text(json.dumps(table, indent=2))
    plot(table, args.out / "plot.png")


if __name__ == "__main__":
    main()
