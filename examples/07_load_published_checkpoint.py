"""Open published weights, by name or from a file of your own, and draw with them.

python examples/07_load_published_checkpoint.py openai/glide "an oil painting of a corgi"
python examples/07_load_published_checkpoint.py openai/adm-256 207 --steps 50
python examples/07_load_published_checkpoint.py 256x256_diffusion.pt 207 --classifier 256x256_classifier.pt

A name is downloaded and converted on first use. Files are recognised by their keys and shapes and read without running
anything in them; what weights do not show of a network that nobody published is asked for (`t2i convert --help`).
"""

import argparse
from pathlib import Path

import t2i
from t2i.convert.convert import convert_files
from t2i.hub.index import models
from t2i.io.weights import load_config
from t2i.pipelines.adm import ADM
from t2i.pipelines.glide import GLIDE


def from_files(decoder: Path, classifier: Path | None, folder: Path) -> t2i.Pipeline:
    """Convert what has not been converted before, and chain it."""
    files = {"decoder": decoder} | ({"classifier": classifier} if classifier else {})
    parts = {place: folder / file.stem for place, file in files.items()}
    for place, file in files.items():
        if not (parts[place] / "config.json").exists():
            found = convert_files([file], parts[place])
            print(f"{file}: a {found.stage}, {found.name}, {found.parameters / 1e6:.1f} M parameters")
    reads = load_config(parts["decoder"])["model"]["ports"]["text"] is not None
    return (GLIDE if reads else ADM).assemble(parts).to("auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a name that `t2i info` lists, or a file; none lists the names")
    parser.add_argument("subject", nargs="?", help="a sentence or a class, for models that take one")
    parser.add_argument("--classifier", type=Path, help="file of a noised classifier, beside a file")
    parser.add_argument("--num", type=int, default=4)
    parser.add_argument("--steps", default=None, help="a number, or a spacing such as ddim50")
    parser.add_argument("--sampler", default=None, help="ddpm, ddim or dpm_solver_pp_2m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("published"))
    args = parser.parse_args()
    if args.model is None:
        print("\n".join(f"{name:<34} {entry.description}" for name, entry in models().items()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if Path(args.model).is_file():
        pipe = from_files(Path(args.model), args.classifier, args.out / "model")
    else:
        pipe = t2i.Pipeline.from_pretrained(args.model)

    asked = {pipe.subject: args.subject, pipe.number: args.num, "seed": args.seed}
    result = pipe(**asked, steps=args.steps, sampler=args.sampler)  # None: as the model was released
    for path, prompt in zip(result.save(args.out / "picture.png"), result.prompts, strict=True):
        print(path, prompt)


if __name__ == "__main__":
    main()
