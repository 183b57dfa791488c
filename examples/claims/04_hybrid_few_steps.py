"""Claim 04: with the hybrid loss quality survives few steps."""

from typing import Any

from lab import Claim, Lab, Result, Value, main
from small_nets import FIXED, distance, drawn, over_seeds, trained

from t2i.diffusion.sampling import Sampling

CLAIM = Claim(
    4,
    "hybrid_few_steps",
    "Networks of the hybrid loss keep their quality in few steps, where fixed variances lose it",
    "Nichol & Dhariwal 2021, arXiv 2102.09672, section 4, Figure 8",
    "Networks of the simple loss draw with fixed large variances (β), those of the hybrid loss with the ones that "
    "they have learned, in 250, 100, 50, 25 and 10 steps of ancestral sampling. What decides is how much farther from "
    "held-out renders the pictures are in 25 steps than in 250 (Fréchet distance in CLIP's embeddings): of fixed "
    "variances by more.",
)
ARMS = {"simple, fixed": FIXED, "hybrid, learned": []}


def run(lab: Lab) -> Result:
    steps = lab.choose("steps", [250, 100, 50, 25, 10], [4, 3, 2, 1])
    pictures, few = lab.choose("drawn pictures", 500, 8), lab.choose("few steps", 25, 2)
    lab.choose("training", "800 steps of 32", "2 steps of 2")
    far: dict[str, dict[int, list[float]]] = {arm: {n: [] for n in steps} for arm in ARMS}
    for arm, overrides in ARMS.items():
        for seed in lab.seeds:
            folder = trained(lab, "cosine-" + arm.split()[1], seed, "configs/shapes/iddpm.yaml", *overrides)
            for n in steps:
                far[arm][n].append(distance(drawn(folder, pictures, Sampling(n, "ddpm"))))
    rows = {arm: {f"{n} steps": Value.of_trainings(values) for n, values in row.items()} for arm, row in far.items()}
    lost = {arm: [a - b for a, b in zip(row[few], row[steps[0]], strict=True)] for arm, row in far.items()}
    decides = [over_seeds("Fréchet lost by few steps, fixed - learned", lost["simple, fixed"], lost["hybrid, learned"])]
    return Result(rows, decides, "Intervals are over trainings, paired by seed.", data={"steps": steps})


def plot(figure: Any, result: Result) -> None:
    ax = figure.subplots()
    for arm, row in result.rows.items():
        halves = [v.half for v in row.values()]
        ax.errorbar(result.data["steps"], [v.mean for v in row.values()], yerr=halves, fmt="o-", capsize=4, label=arm)
    ax.set(xlabel="steps", ylabel="Fréchet distance, CLIP", xscale="log", ylim=0)
    ax.set_xticks(result.data["steps"], result.data["steps"])
    ax.legend()


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
