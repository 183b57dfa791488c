"""Draw pictures with the bundled model, look at what each stage did, and repeat one of them from its PNG.

python examples/01_generate.py "a red cube" --num 2 --out out
"""

import argparse
from pathlib import Path

import t2i
from t2i.io.provenance import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="a red cube")
    parser.add_argument("--model", default="shapes", help="a bundled name or a folder")
    parser.add_argument("--num", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--stop-after", default=None, help="such as decoder, for 64 px pictures")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = t2i.Pipeline.from_pretrained(args.model)

    # One number for all stages, or a dict by stage; picture i uses seed + i, alone or in a batch.
    result = pipe(
        args.prompt,
        num_images_per_prompt=args.num,
        seed=args.seed,
        guidance={"prior": 2.0, "decoder": 2.0},
        stop_after=args.stop_after,
    )
    for path, seed in zip(result.save(args.out / "picture.png"), result.seeds, strict=True):
        print(f"{path}  seed {seed}")
    print("seconds by stage:", {stage: round(seconds, 2) for stage, seconds in result.timings.items()})

    # How well does CLIP think that the embedding of the prior fits the sentence?
    text = pipe.clip.encode_text([args.prompt]).pooled.detach().cpu()
    print("cosine of sentence and pictures:", [round(float(c), 3) for c in (result.embeddings @ text.T)[:, 0]])

    # The recipe travels in the PNG.
    first = args.out / ("picture.png" if args.num == 1 else "picture-0.png")
    recipe = read_recipe(first)
    again = pipe(**recipe["arguments"])[recipe["picture"]]
    print("repeated exactly:", again.tobytes() == result[0].tobytes())


if __name__ == "__main__":
    main()
