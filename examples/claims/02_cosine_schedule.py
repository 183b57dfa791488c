"""Claim 02: the cosine schedule beats the linear one."""

from typing import Any

from lab import Claim, Lab, Result, Value, bars, main
from small_nets import distance, drawn, over_seeds, trained

from t2i.diffusion.sampling import Sampling
from t2i.evals.bpd import bpd

CLAIM = Claim(
    2,
    "cosine_schedule",
    "The cosine schedule beats the linear one",
    "Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.2, Tables 1 and 2",
    "The same network with learned variances is trained with either schedule. What decides is what the paper's tables "
    "hold, the bits per dimension of held-out pictures and a Fréchet distance of drawn ones, here in CLIP's "
    "embeddings.",
)
ARMS = {"linear": ["model.diffusion.schedule=linear"], "cosine": []}


def run(lab: Lab) -> Result:
    num, steps = lab.choose("held-out pictures", 96, 2), lab.choose("steps of the process", "100", "4")
    pictures = lab.choose("drawn pictures", 500, 8)
    lab.choose("training", "800 steps of 32", "2 steps of 2")
    bits: dict[str, list[float]] = {arm: [] for arm in ARMS}
    far: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for arm, overrides in ARMS.items():
        for seed in lab.seeds:
            folder = trained(lab, f"{arm}-learned", seed, "configs/shapes/iddpm.yaml", *overrides)
            found = bpd(str(folder), num=num, batch=32, steps=steps, num_things={1: 1}, device="cpu")
            bits[arm].append(found.facts["bits_per_dim"])
            far[arm].append(distance(drawn(folder, pictures, Sampling(steps, "ddpm"))))
    rows = {
        arm: {"bits/dim": Value.of_trainings(bits[arm]), "Fréchet, CLIP": Value.of_trainings(far[arm])} for arm in ARMS
    }
    decides = [
        over_seeds("bits/dim, linear - cosine", bits["linear"], bits["cosine"]),
        over_seeds("Fréchet distance, linear - cosine", far["linear"], far["cosine"]),
    ]
    return Result(rows, decides, "Intervals are over trainings, paired by seed.")


def plot(figure: Any, result: Result) -> None:
    left, other = figure.subplots(1, 2)
    bars(left, result.rows, "bits/dim", "bits per dimension, held out")
    bars(other, result.rows, "Fréchet, CLIP", "Fréchet distance, CLIP")


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
