"""Take a picture apart as DALL-E 2 does, and put it together again in every way of its sections 3 and 4.

python examples/05_variations_interpolation_textdiff.py --out manipulated
python examples/05_variations_interpolation_textdiff.py photo.png --other cat.png --model FOLDER \
    --before "a photo of a dog" --after "a photo of a lion" --pictures photos/

Without pictures it renders a red cube and a green sphere. One row is written for each way, the picture itself on the
left.
"""

import argparse
import random
from pathlib import Path

import torch
from PIL import Image

import t2i
from t2i.data import shapes
from t2i.io.images import open_image, save_gif, sheet, to_pil
from t2i.pipeline.output import Output


def scene(colour: str, shape: str, seed: int) -> Image.Image:
    """A rendered thing."""
    return to_pil(shapes.render(shapes.compose([(colour, shape)], rng=random.Random(seed))))[0]


def others(folder: Path | None, num: int) -> list[Image.Image]:
    """Pictures on which principal components are measured: those of a folder, or renders."""
    if folder is not None:
        return [open_image(path) for path in sorted(folder.glob("*.png"))[:num]]
    return to_pil(shapes.batch(range(num))["image"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", type=Path, help="a square picture; a red cube if not given")
    parser.add_argument("--other", type=Path, help="the far end of the interpolation; a green sphere if not given")
    parser.add_argument("--before", default="a red cube", help="what the picture shows")
    parser.add_argument("--after", default="a blue cube", help="what it is to show")
    parser.add_argument("--pictures", type=Path, help="folder of square PNGs for the principal components")
    parser.add_argument("--num-pictures", type=int, default=256)
    parser.add_argument("--model", default="shapes", help="a name or a folder")
    parser.add_argument("--steps", type=int, default=50, help="of the decoder, both ways")
    parser.add_argument("--num", type=int, default=5, help="pictures in each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", default="decoder", help="a later stage for larger pictures")
    parser.add_argument("--out", type=Path, default=Path("manipulated"), help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    image = open_image(args.image) if args.image else scene("red", "cube", seed=1)
    other = open_image(args.other) if args.other else scene("green", "sphere", seed=2)

    pipe = t2i.Pipeline.from_pretrained(args.model)
    how = {"steps": {"decoder": args.steps}, "seed": args.seed, "stop_after": args.stop_after}

    # (z_i, x_T), once for everything that follows: what CLIP sees in the picture, and all the rest.
    latent = pipe.encode(image, steps=args.steps)
    end = pipe.encode(other, steps=args.steps)
    torch.save({"z_i": latent.z_i, "x_T": latent.x_T}, args.out / "latent.pt")

    num = args.num
    embeddings = pipe.embed(others(args.pictures, args.num_pictures))
    most = min(embeddings.shape[1], len(embeddings) - 1)
    rows: dict[str, Output] = {
        "reconstruct": pipe.reconstruct(latent, **how),
        # The more noise, the more is left to chance: what stays is what CLIP has seen.
        "variations": pipe.variations(latent, num, eta=1.0, **how),
        "interpolate": pipe.interpolate(latent, end, num, **how),
        "interpolate-fixed": pipe.interpolate(latent, end, num, noise="fixed", **how),
        "interpolate-text": pipe.interpolate(latent, args.after, num, **how),
        # Guidance (2 unless said) makes the change stronger, and the first picture a little less like the source.
        "text-diff": pipe.text_diff(latent, args.before, args.after, n=num, **how),
        # Coarse meaning lies in the first principal components, detail in later ones.
        "probe": pipe.probe(latent, embeddings, sorted({max(1, most // 2**i) for i in range(num)}), **how),
    }
    for name, result in rows.items():
        size = result.images[0].size
        sheet([image.resize(size), *result.images], columns=len(result) + 1).save(args.out / f"{name}.png")
        print(f"{args.out / name}.png  cosine of z_i and the picture's:", cosines(latent.z_i, result))
    save_gif(rows["interpolate"].images, args.out / "interpolate.gif")


def cosines(z_i: torch.Tensor, result: Output) -> list[float]:
    """How alike what was drawn is to the source, as far as CLIP's embeddings that it was drawn from say."""
    assert result.embeddings is not None
    similar = torch.cosine_similarity(z_i, result.embeddings)
    return [round(float(value), 2) for value in similar]


if __name__ == "__main__":
    main()
