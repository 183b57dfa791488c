"""The experiment of DALL-E 3's paper (Betker et al. 2023, sections 2 and 3): do better captions make better pictures?

python examples/12_recaption_and_train.py --count 20000 --steps 4000 --out recaption

Pictures with captions as careless as the web's (alt) are captioned anew by two captioners, short and descriptive. The
same generator learns from each blend, and draws held-out scenes, asked in their alt and in their descriptive captions.
What is written takes the place of the short and descriptive captions that the world gives its renders.
CLIP score is 100 · cosine; the reader says which share of a scene's things are there, in their colours and shapes, and
how often all are, and nothing else. Writes table.json and plot.png; intervals are of the mean over scenes, 95 %: what
another training would have given is not in them. The same command continues, and --arms may be done one by one.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image

from t2i.cli.caption import caption
from t2i.data import shapes
from t2i.data.encode import Files, encode
from t2i.data.shapes.write import write_shards
from t2i.evals.compose import load_reader
from t2i.evals.report import Score
from t2i.io.images import from_pil
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
MEASURES = {"clip": "CLIP score", "things": "things drawn right, %", "scenes": "scenes drawn right, %"}
Table = dict[str, dict[str, dict[str, tuple[float, float]]]]  # by arm, asked, measure: mean and half of its interval


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
        """Of every picture, with its caption of a kind: see `MEASURES`."""
        x = torch.stack([from_pil(picture) for picture in pictures])
        cosine = F.cosine_similarity(self.clip.encode_image(x), self.clip.encode_text(self.asked(kind)).pooled)
        found = [Counter((thing.colour, thing.shape) for thing in things) for things in self.reader.read(x)]
        scenes = [json.loads(scene) for scene in self.scenes["scene"]]
        there = [Counter((thing["colour"], thing["shape"]) for thing in scene["things"]) for scene in scenes]
        pairs = list(zip(found, there, strict=True))
        things = [100 * (a & b).total() / b.total() for a, b in pairs]
        return {"clip": (100 * cosine).tolist(), "things": things, "scenes": [100.0 * (a == b) for a, b in pairs]}


def over_scenes(scores: list[list[float]]) -> tuple[float, float]:
    """Mean and half of its interval, of what each scene has on average over trainings."""
    return Score.of(torch.tensor(scores).mean(dim=0).tolist())[:2]


def earlier(path: Path, settings: dict[str, Any]) -> Table:
    """The arms that are done already; ends where they were done otherwise."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text())
    if before["settings"] != settings:
        raise SystemExit(f"{path} is of other settings, {before['settings']}: choose another --out")
    done: Table = before["arms"]
    return done


def plot(table: Table, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MEASURES), figsize=(15, 4), layout="constrained")
    for axis, (what, title) in zip(axes, MEASURES.items(), strict=True):
        for kind in ASKED:
            means, halves = zip(*(row[kind][what] for row in table.values()), strict=True)
            axis.errorbar(range(len(table)), means, halves, fmt="o", capsize=3, label=f"asked in {kind} captions")
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
    tables = args.out / "table.json"
    settings = {key: getattr(args, key) for key in ("model", "clip", "count", "size", "steps", "seeds", "num", "set")}
    done = earlier(tables, settings)
    parts = {name: str(model / name) for name in ("text", "autoencoder")}
    write_shards(pictures, count=args.count, size=args.size)
    writers = ",".join(f"{kind}={model / f'captioner-{kind}'}" for kind in ("short", "descriptive"))
    caption(str(pictures), writers, pictures, batch=32)
    codec: Any = load_stage(parts["autoencoder"])
    encode(latents, Files(str(pictures), args.size), codec)
    judge = Judge(args.num, args.size, args.clip)
    for arm in args.arms:
        if arm in done:
            continue
        found: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in ASKED}  # scores of each training
        for seed in range(args.seeds):
            run = args.out / f"{arm.replace(' % ', '-')}-{seed}"
            needs = [f"needs.{name}={folder}" for name, folder in parts.items()]
            data = [f"data.source={latents}", f"data.captions={json.dumps(ARMS[arm])}", "task.cached=true"]
            sides = [f"data.size={args.size}", f"model.image_size={args.size // codec.factor}"]
            how = [*sides, f"train.out={run}", f"train.seed={seed}", f"train.steps={args.steps}"]
            train("configs/shapes/dalle3.yaml", [*needs, *data, *how, *args.set])
            pipe = DALLE3.assemble({**parts, "decoder": run})
            for kind in ASKED:
                drawn = pipe(judge.asked(kind), seed=1000 * seed, progress=False)
                found[kind].append(judge.scores(drawn.images, kind))
        done[arm] = {kind: {what: over_scenes([s[what] for s in found[kind]]) for what in MEASURES} for kind in ASKED}
        for kind, row in done[arm].items():
            print(arm, f"asked in {kind}:", ", ".join(f"{what} {m:.1f} ± {h:.1f}" for what, (m, h) in row.items()))
        tables.write_text(json.dumps({"settings": settings, "arms": done}, indent=2))
    plot({arm: done[arm] for arm in ARMS if arm in done}, args.out / "plot.png")


if __name__ == "__main__":
    main()
