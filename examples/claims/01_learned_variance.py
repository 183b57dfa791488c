"""Claim 01: learned variances lower bits per dimension."""

from typing import Any

from lab import Claim, Difference, Lab, Result, Value, bars, main
from small_nets import FIXED, trained

from t2i.evals.bpd import bpd

CLAIM = Claim(
    1,
    "learned_variance",
    "Learned variances lower the bits per dimension",
    "Nichol & Dhariwal 2021, arXiv 2102.09672, sections 3.1 and 4, Tables 1 and 2",
    "The same network is trained with the hybrid loss and learned variances, and with the simple loss and fixed ones, "
    "the cosine schedule both, from the same seeds on the same pictures. What decides are the bits per dimension of "
    "held-out pictures, in 100 steps of the process.",
)
ARMS = {"fixed variance": FIXED, "learned variance": []}


def run(lab: Lab) -> Result:
    num, steps = lab.choose("held-out pictures", 96, 2), lab.choose("steps of the process", "100", "4")
    lab.choose("training", "800 steps of 32", "2 steps of 2")
    bits: dict[str, list[float]] = {arm: [] for arm in ARMS}
    terms = {}
    for arm, overrides in ARMS.items():
        for seed in lab.seeds:
            folder = trained(lab, "cosine-" + arm.split()[0], seed, "configs/shapes/iddpm.yaml", *overrides)
            facts = bpd(str(folder), num=num, batch=32, steps=steps, num_things={1: 1}, device="cpu").facts
            bits[arm].append(facts["bits_per_dim"])
            terms[arm] = facts["timesteps"], facts["vb"]
    rows = {arm: {"bits/dim": Value.of_trainings(values)} for arm, values in bits.items()}
    gain = [a - b for a, b in zip(bits["fixed variance"], bits["learned variance"], strict=True)]
    decides = [Difference("bits/dim, fixed - learned", Value.of_trainings(gain))]
    return Result(rows, decides, "Intervals are over trainings, paired by seed.", data={"terms": terms})


def plot(figure: Any, result: Result) -> None:
    left, other = figure.subplots(1, 2)
    bars(left, result.rows, "bits/dim", "bits per dimension, held out")
    for arm, (timesteps, vb) in result.data["terms"].items():
        other.semilogy(timesteps, [max(v, 1e-8) for v in vb], label=arm)
    other.set(xlabel="timestep", ylabel="bits per dimension of the step")
    other.legend(fontsize=8)


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
