"""Turn the dial of guidance, in the three ways of the papers: right more often, and less different.

python examples/03_guidance_dial.py --num 4 --out dial
python examples/03_guidance_dial.py "a red cube" "a blue ring" --num 16

Without a classifier, by CLIP (GLIDE) and by a noised classifier (ADM), each at rising scales from the same noise.
Writes dial.png, one row a way and one column a scale; dial.json; and dial-plot.png, what share the reader of scenes
finds right, and how far two pictures of one sentence are apart (cosine distance of their CLIP embeddings).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import t2i
from t2i.evals.compose import load_reader
from t2i.io.images import from_pil, grid
from t2i.stages.registry import load_stage

PROMPTS = ["a red cube", "a blue sphere", "a green cone", "a yellow torus", "a purple pyramid", "an orange cylinder"]
WAYS: dict[str, tuple[str, str, dict[str, float], list[float]]] = {  # model, who guides, who does not, scales
    "classifier-free": ("shapes-glide", "decoder", {"clip": 0.0}, [0.0, 1.0, 2.0, 4.0, 8.0]),
    "CLIP": ("shapes-glide", "clip", {"decoder": 1.0}, [0.0, 1.0, 3.0, 10.0, 30.0]),
    "classifier": ("shapes-adm", "classifier", {"decoder": 1.0}, [0.0, 1.0, 3.0, 10.0, 30.0]),
}


def right(reader: Any, pictures: Tensor, subjects: list[str]) -> list[bool]:
    """Whether the surest object that the reader finds in (N, 3, S, S) is, for example, a red cube."""
    found = [seen[0] if seen else None for seen in reader.read(pictures)]
    return [seen is not None and f"{seen.colour} {seen.shape}" == s for seen, s in zip(found, subjects, strict=True)]


def diversity(clip: Any, pictures: Tensor, num: int) -> float:
    """Mean cosine distance of two pictures of the same subject; `num` of each stand side by side in (N, 3, S, S)."""
    size = clip.image_size
    z = clip.encode_image(F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)).unflatten(
        0, (-1, num)
    )
    return float(1 - ((z @ z.mT).sum(dim=(1, 2)) - num).mean() / max(num * (num - 1), 1))


@torch.no_grad()
def turn(
    way: str, prompts: list[str], num: int, seed: int, steps: int, folder: str | None
) -> tuple[Tensor, list[dict]]:
    """The first picture at every scale, (scales, 3, S, S), and what is measured at each."""
    model, guide, rest, scales = WAYS[way]
    pipe = t2i.Pipeline.from_pretrained(folder or model)
    reader, clip = load_reader(pipe.device), load_stage("weights/shapes/clip").to(pipe.device)
    subjects = [
        prompt.split(maxsplit=1)[1] for prompt in prompts for _ in range(num)
    ]  # "red cube", without its article
    asked = prompts if pipe.subject == "prompt" else [prompt.split(maxsplit=1)[1] for prompt in prompts]
    firsts, rows = [], []
    for scale in scales:
        drawn = pipe(
            asked, seed=seed, steps={"decoder": steps}, sampler={"decoder": "ddim"}, stop_after="decoder",
            guidance=rest | {guide: scale}, progress=False, **{pipe.number: num},
        )  # fmt: skip
        pictures = torch.stack([from_pil(image) for image in drawn.images]).to(pipe.device)
        share = sum(right(reader, pictures, subjects)) / len(subjects)
        rows.append({"way": way, "scale": scale, "right": share, "diversity": diversity(clip, pictures, num)})
        print(f"{way:<16} {scale:>5}  right {share:>6.1%}  diversity {rows[-1]['diversity']:.4f}", flush=True)
        firsts.append(pictures[0])
    return torch.stack(firsts).cpu(), rows


def plot(rows: list[dict], path: Path) -> None:
    """Right and diversity over the scale, one line a way."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [row for row in rows if row["way"] == way]
        scales = [p["scale"] for p in points]
        axes[0].plot(scales, [100 * p["right"] for p in points], "o-", label=way)
        axes[1].plot(scales, [p["diversity"] for p in points], "o-", label=way)
    for ax, measured in zip(axes, ("right, %", "diversity"), strict=True):
        ax.set(xlabel="guidance scale", ylabel=measured, xscale="symlog", ylim=0)
        ax.set_xticks([0, 1, 3, 10, 30], ["0", "1", "3", "10", "30"])
    axes[1].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="an article, a colour and a shape")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--num", type=int, default=4, help="pictures of each prompt at each scale, at least 2")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--glide", help="another folder than shapes-glide")
    parser.add_argument("--adm", help="another folder than shapes-adm")
    parser.add_argument("--out", type=Path, default=Path("dial"), help="beginning of the names of three files")
    args = parser.parse_args()
    if args.num < 2:
        parser.error("--num must be at least 2: diversity is between pictures of one prompt")
    folders = {"shapes-glide": args.glide, "shapes-adm": args.adm}
    pictures, rows = [], []
    for way in args.ways:
        firsts, measured = turn(way, args.prompts, args.num, args.seed, args.steps, folders[WAYS[way][0]])
        pictures.append(F.interpolate(firsts, (64, 64), mode="nearest"))
        rows += measured
    grid(torch.cat(pictures), columns=pictures[0].shape[0]).save(f"{args.out}.png")
    facts = {"prompts": args.prompts, "num": args.num, "seed": args.seed, "steps": args.steps, "rows": rows}
    Path(f"{args.out}.json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(rows, Path(f"{args.out}-plot.png"))


if __name__ == "__main__":
    main()
