"""Write the name of one thing on a picture of another: what CLIP believes, and what the decoder draws of it.

python examples/10_typographic_attack.py --out attack.png
python examples/10_typographic_attack.py apple.png --words iPod pizza --labels "a Granny Smith apple" "an iPod" \
    --model kakaobrain/karlo-v1-alpha-image-variations

CLIPs that learned from the web can read, and take a labelled thing for its label; in DALL-E 2's section 3, variations
of a labelled apple show apples all the same. The CLIP of the shapes world never saw writing: a word is a slip of paper.
"""

import argparse
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import t2i
from t2i.data import shapes
from t2i.io.images import open_image, sheet, to_pil


def labelled(picture: Image.Image, word: str) -> Image.Image:
    """The picture with a slip of paper across its middle that bears the word."""
    out, side = picture.copy(), picture.width
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(size=side / 6)
    wide = draw.textlength(word, font=font)
    if wide > 0.9 * side:
        font = ImageFont.load_default(size=side / 6 * 0.9 * side / wide)
    left, top, right, bottom = draw.textbbox((side / 2, side / 2), word, font=font, anchor="mm")
    margin = side / 32
    draw.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill="white")
    draw.text((side / 2, side / 2), word, font=font, anchor="mm", fill="black")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", type=Path, help="a square picture; a green sphere if not given")
    parser.add_argument("--words", nargs="+", default=["CUBE", "CONE"], help="what is written on it, each in turn")
    parser.add_argument("--labels", nargs="+", default=["a green sphere", "a green cube", "a green cone"])
    parser.add_argument("--model", default="shapes", help="a name or a folder")
    parser.add_argument("--num", type=int, default=4, help="variations of each picture")
    parser.add_argument("--steps", type=int, default=25, help="of the decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("attack.png"), help="the picture to write")
    args = parser.parse_args()
    plain = open_image(args.image) if args.image else scene()

    pipe = t2i.Pipeline.from_pretrained(args.model)
    pictures = [plain, *(labelled(plain, word) for word in args.words)]
    z_i = torch.nn.functional.normalize(pipe.embed(pictures), dim=1)  # (1 + words, D)
    with torch.no_grad():
        z_t = torch.nn.functional.normalize(pipe.clip.encode_text(args.labels).pooled.float().cpu(), dim=1)
        scale = float(pipe.clip.clip.logit_scale.exp())
    believed = (scale * z_i @ z_t.T).softmax(dim=1)  # (1 + words, labels), zero-shot as in CLIP
    width = max(len(label) for label in args.labels)
    print(" " * width, *(f"{word:>10}" for word in ("no word", *args.words)))
    for label, shares in zip(args.labels, believed.T.tolist(), strict=True):
        print(f"{label:{width}}", *(f"{share:10.2%}" for share in shares))

    rows = []
    for picture in pictures:  # with fresh noise at every step, what stays is what CLIP saw
        drawn = pipe.variations(picture, args.num, eta=1.0, steps={"decoder": args.steps}, seed=args.seed,
                                stop_after="decoder")  # fmt: skip
        rows += [picture.resize(drawn[0].size), *drawn.images]
    sheet(rows, columns=args.num + 1).save(args.out)
    print(args.out)


def scene() -> Image.Image:
    return to_pil(shapes.render(shapes.compose([("green", "sphere")], rng=random.Random(1)), 256))[0]


if __name__ == "__main__":
    main()
