"""What ADM's Table 1 compares, one part of the network at a time (claims 05, 06 and 07)."""

from typing import Any

from lab import Claim, Lab, Result, Value, bars
from small_nets import distance, drawn, over_seeds, trained

from t2i.diffusion.sampling import Sampling

CONFIG = "configs/shapes/iddpm.yaml"
BASE = ["model.unet.num_heads=1", "model.unet.resample=conv"]
PAPER = "Dhariwal & Nichol 2021, arXiv 2105.05233, section 3, Table 1"
TRIED = (
    "A small network is trained five times as it is and five times with that one change, from the same seeds on the "
    "same pictures for as many steps. What decides is what the paper measured, a Fréchet distance of drawn pictures "
    "to held-out ones, here in CLIP's embeddings; one step of training takes longer with the change, which is not "
    "weighed."
)


def compare(lab: Lab, claim: Claim, change: str, *overrides: str) -> Result:
    """The network as it is, and with some overrides."""
    steps = lab.choose("steps of the process", 50, 2)
    pictures = lab.choose("drawn pictures", 1000, 8)
    lab.choose("training", "800 steps of 32", "2 steps of 2")
    arms = {"as it is": ("adm", BASE), change: (claim.name, [*BASE, *overrides])}
    far = {
        arm: [
            distance(drawn(trained(lab, name, seed, CONFIG, *settings), pictures, Sampling(steps, "ddpm")))
            for seed in lab.seeds
        ]
        for arm, (name, settings) in arms.items()
    }
    rows = {arm: {"Fréchet, CLIP": Value.of_trainings(values)} for arm, values in far.items()}
    decides = [over_seeds(f"Fréchet distance, as it is - {change}", far["as it is"], far[change])]
    return Result(rows, decides, "Intervals are over trainings, paired by seed.", data=far)


def plot(figure: Any, result: Result) -> None:
    """Each training, and the means."""
    left, other = figure.subplots(1, 2)
    bars(left, result.rows, "Fréchet, CLIP", "Fréchet distance, CLIP")
    other.plot(list(result.data), list(result.data.values()), "o-")
    other.set_ylabel("of each pair of trainings")
