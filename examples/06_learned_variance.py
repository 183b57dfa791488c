"""What Improved DDPM (Nichol & Dhariwal 2021) adds to DDPM, tried on a laptop: two schedules by two kinds of variance.

python examples/06_learned_variance.py --steps 2000 --out runs/variance

Trains configs/shapes/iddpm.yaml four times from the same seed on the same pictures, so that only what is compared is
different; a run that was stopped goes on. Then held-out pictures are told to each network, which says how many bits
they cost. Writes table.json and terms.png: what every step of the process costs, as in figures 2 and 5 of the paper.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from t2i.evals.bpd import bpd
from t2i.run import train

FIXED = ["model.diffusion.variance=fixed_large", "model.unet.out_channels=3"]
RUNS: dict[str, list[str]] = {
    "linear, fixed": ["model.diffusion.schedule=linear", *FIXED],
    "linear, learned": ["model.diffusion.schedule=linear"],
    "cosine, fixed": FIXED,
    "cosine, learned": [],
}


def overrides(name: str, folder: Path, args: argparse.Namespace) -> list[str]:
    """What differs from the config; fixed variances have the simple loss, for there is nothing else to learn."""
    kind = "simple" if "fixed" in name else "hybrid"
    every = [f"train.out={folder}", f"train.steps={args.steps}", f"train.seed={args.seed}", "train.val_every=0"]
    return [*RUNS[name], f"task.kind={kind}", *every, *args.set]


def plot(facts: dict[str, dict[str, Any]], path: Path) -> None:
    """Bits of every step, and their sum from the noisiest step down."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (terms, total) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, found in facts.items():
        vb, t = found["vb"], found["timesteps"]
        terms.semilogy(t, [max(value, 1e-8) for value in vb], label=name)
        sums = [found["prior"] + sum(vb[i:]) for i in range(len(vb))]
        total.semilogy(t, sums, label=f"{name}: {found['bits_per_dim']:.2f}")
    terms.set(xlabel="timestep", ylabel="bits per dimension of the step")
    total.set(xlabel="timestep", ylabel="bits per dimension down to the step")
    terms.legend()
    total.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of training, the same for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=32, help="held-out pictures that are measured")
    parser.add_argument("--spacing", default=None, help="measure with fewer steps of the process, such as 250")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all four configs")
    parser.add_argument("--out", type=Path, default=Path("runs/variance"))
    args = parser.parse_args()
    facts = {}
    for name in RUNS:
        folder = args.out / name.replace(", ", "-")
        train(Path("configs/shapes/iddpm.yaml"), overrides(name, folder, args))
        facts[name] = bpd(str(folder), num=args.num, batch=16, steps=args.spacing, num_things={1: 1}).facts
    print(f"{'schedule, variance':<20}{'bits/dim':>9}{'':3}{'standard error':>14}")
    for name, found in facts.items():
        print(f"{name:<20}{found['bits_per_dim']:>9.3f}{'':3}{found['standard_error'] or 0:>14.3f}")
    given = {"steps": args.steps, "seed": args.seed, "spacing": args.spacing}
    (args.out / "table.json").write_text(json.dumps(given | {"runs": facts}, indent=1) + "\n")
    plot(facts, args.out / "terms.png")


if __name__ == "__main__":
    main()
