"""What is a prior for? The question of DALL-E 2's section 5.1, on the shapes world: one decoder, told ever more.

python examples/09_what_the_prior_adds.py --num 2 --out prior

The decoder draws the prompts of `t2i eval compose` from the caption alone; with CLIP's embedding of the sentence where
that of a picture belongs; with what the autoregressive and the diffusion prior make of the sentence; and, to see what a
perfect prior would be worth, with the embedding of a render of it. A reader of scenes counts what is right; Fréchet
distance to renders of the same sentences and diversity are between CLIP embeddings of the pictures. Writes prior.json,
and prior.png with one row a way.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import t2i
from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.shapes.scene import COLOURS
from t2i.evals.compose import Prompt, load_reader, mean, prompts, score, summary
from t2i.evals.prior import frechet
from t2i.io.images import grid
from t2i.stages.prior.model import Prior
from t2i.stages.registry import load_stage, stage_of
from t2i.stages.stage import How, Inputs

WAYS = ("caption alone", "text embedding", "AR prior", "diffusion prior", "a render's embedding")


def renders(asked: list[Prompt], seed: int, size: int) -> Tensor:
    """A picture of what each prompt asks for, (N, 3, size, size); colours that it leaves open are drawn."""
    scenes = []
    for i, prompt in enumerate(asked):
        rng = random.Random(seed + i)
        kinds = [(w.colour or rng.choice(COLOURS), w.shape) for w in prompt.wanted for _ in range(w.num)]
        scenes.append(shapes.compose(kinds, prompt.relation, rng))
    return shapes.render(scenes, size)


class Drawer:
    """The bundled DALL-E 2 up to its decoder, with both priors."""

    def __init__(self, model: str, ar: str) -> None:
        self.pipe: Any = t2i.Pipeline.from_pretrained(model)
        self.clip, self.prior, self.decoder = (self.pipe.parts[name] for name in ("clip", "prior", "decoder"))
        if not isinstance(self.prior, Prior):
            raise UsageError(f"{model} has no diffusion prior to compare")
        self.ar_prior: Any = load_stage(ar, expect="ar_prior").to(self.pipe.device)
        self.plan, _ = self.pipe.planner.plan({"stop_after": "decoder"})

    def embeddings(self, way: str, texts: list[str], seeds: list[int], shown: Tensor) -> Tensor | None:
        """What the decoder is given besides the caption, (B, D)."""
        if way == "caption alone":
            return None
        if way == "a render's embedding":
            return self.clip.encode_image(shown)
        if way == "text embedding":
            return self.clip.encode_text(texts).pooled
        return self.draw("prior", self.ar_prior if way == "AR prior" else self.prior, texts, seeds)

    def draw(self, place: str, part: Any, texts: list[str], seeds: list[int], z_i: Tensor | None = None) -> Tensor:
        """What a stage draws, guided away from knowing nothing: embeddings (B, D), or pictures (B, 3, S, S)."""
        inputs = Inputs(len(texts), texts, [""] * len(texts), self.pipe.encode_texts, z_i)
        how = How(self.plan[place], Streams(seeds, place), num_candidates=2)
        return stage_of(part).draw(part, inputs, how)


def diversity(z: Tensor, num: int) -> float:
    """Mean cosine distance of two pictures of the same sentence; `num` of each stand side by side in (N, D)."""
    z = F.normalize(z, dim=1).unflatten(0, (-1, num))
    return float(1 - ((z @ z.mT).sum(dim=(1, 2)) - num).mean() / (num * (num - 1)))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="of DALL-E 2's kind, a name or a folder")
    parser.add_argument("--ar", default="weights/shapes-ar/prior", help="folder of an autoregressive prior")
    parser.add_argument("--num", type=int, default=2, help="pictures of each prompt, at least 2")
    parser.add_argument("--every", type=int, default=1, help="take only every N-th prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("prior"), help="beginning of the names of two files")
    args = parser.parse_args()
    if args.num < 2:
        parser.error("--num must be at least 2: diversity is between pictures of one prompt")
    asked = [prompt for prompt in prompts()[:: args.every] for _ in range(args.num)]
    drawer, size = Drawer(args.model, args.ar), 64
    reader, seeds = load_reader(drawer.pipe.device), [args.seed + i for i in range(len(asked))]
    true, shown = (renders(asked, first, size).to(drawer.pipe.device) for first in (10**6, 2 * 10**6))
    drawn = {}
    for way in WAYS:
        parts = []
        for i in range(0, len(asked), 20):
            texts, some = [prompt.text for prompt in asked[i : i + 20]], seeds[i : i + 20]
            z_i = drawer.embeddings(way, texts, some, shown[i : i + 20])
            parts.append(drawer.draw("decoder", drawer.decoder, texts, some, z_i))
        drawn[way] = torch.cat(parts)
    drawn["renders"] = shown
    z_true, rows = drawer.clip.encode_image(true), {}
    print(f"{'':<22}{'right, %':>9}{'Fréchet':>9}{'diversity':>11}")
    for way, pictures in drawn.items():
        z = drawer.clip.encode_image(pictures)
        verdicts = [
            (prompt, score(prompt, found)[0]) for prompt, found in zip(asked, reader.read(pictures), strict=True)
        ]
        shares = summary(verdicts)
        rows[way] = {"right": mean(shares), "frechet": frechet(z, z_true), "diversity": diversity(z, args.num)}
        rows[way]["tasks"] = {task: share.share for task, share in shares.items()}
        print(f"{way:<22}{100 * rows[way]['right']:>9.1f}{rows[way]['frechet']:>9.3f}{rows[way]['diversity']:>11.3f}")
    facts = {"model": args.model, "num": args.num, "seed": args.seed, "pictures": len(asked), "rows": rows}
    Path(f"{args.out}.json").write_text(json.dumps(facts, indent=1) + "\n")
    shown_rows = [pictures[:: args.num][:: max(1, len(asked) // args.num // 12)][:12] for pictures in drawn.values()]
    grid(torch.cat(shown_rows).cpu(), columns=len(shown_rows[0])).save(f"{args.out}.png")


if __name__ == "__main__":
    main()
