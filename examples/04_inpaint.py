"""Draw part of a picture anew: a network trained for it beside any decoder, and an edit without a mask.

python examples/04_inpaint.py --out inpaint
python examples/04_inpaint.py photo.png --mask mask.png --prompt "a blue sphere" --model FOLDER

Without a picture it renders a scene of two things and hides the second. Writes one row: the picture, what is hidden,
drawn by the network trained to inpaint, drawn by the ordinary decoder with what is known written into every step
(replaced), and the whole picture drawn from its own noised self (edited).
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

import t2i
from t2i.data import shapes
from t2i.io.images import from_pil, grid, to_pil
from t2i.pipeline.inputs import read_inpaint


def scene(size: int = 64) -> tuple[Image.Image, Image.Image]:
    """A red cube to the left of a green sphere, and a mask over what stands on the right."""
    picture = to_pil(shapes.render(shapes.compose([("red", "cube"), ("green", "sphere")], "left of"), size))[0]
    mask = Image.new("L", picture.size)
    mask.paste(255, (size // 2, size // 8, size - size // 16, size - size // 16))
    return picture, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="?", type=Path, help="a square picture; a rendered scene if not given")
    parser.add_argument("--mask", type=Path, help="white where the picture is drawn anew")
    parser.add_argument("--prompt", default="a red cube to the left of a blue sphere", help="what the whole shows then")
    parser.add_argument("--model", default="shapes-glide", help="a name or a folder")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--strength", type=float, default=0.7, help="of the edit, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("inpaint"), help="folder to write")
    args = parser.parse_args()
    if (args.image is None) != (args.mask is None):
        parser.error("give a picture and a mask, or neither")
    image, mask = (args.image, args.mask) if args.image else scene()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = t2i.Pipeline.from_pretrained(args.model)
    how = {"seed": args.seed, "steps": {"decoder": args.steps}, "stop_after": "decoder", "progress": False}
    drawn = {
        "replaced": pipe.inpaint(image, mask, args.prompt, method="replaced", **how),
        "edited": pipe.edit(image, args.prompt, args.strength, **how),
    }
    painter = "inpaint" if "inpaint" in pipe.parts else "decoder"
    if pipe.parts[painter].config.ports.masked is not None:
        how |= {"steps": {painter: args.steps}, "stop_after": painter}
        drawn = {"trained": pipe.inpaint(image, mask, args.prompt, method="trained", **how)} | drawn
    for name, result in drawn.items():
        result.save(args.out / f"{name}.png")

    size = result.images[0].width
    whole = read_inpaint(image, mask, size=size, base=size, blend=0)
    known, anew = whole.picture, whole.fresh  # (3, S, S) and (1, S, S)
    pictures = {name: from_pil(result.images[0]) for name, result in drawn.items()}
    for name, picture in pictures.items():
        change = ((picture - from_pil(to_pil(known[None])[0])).abs() * (1 - anew)).max()
        print(f"{name}: the largest change outside of the mask is {127.5 * change:.0f} of 255")
    row = torch.stack([known, known * (1 - anew), *pictures.values()])
    grid(row, columns=len(row)).save(args.out / "row.png")


if __name__ == "__main__":
    main()
