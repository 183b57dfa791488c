"""Claim 17: analytic variances beat fixed ones at few steps."""

import random
from dataclasses import replace
from typing import Any

import lab as laboratory
import torch
from lab import Claim, Difference, Lab, Result, frechet, main, resampled
from torch import Tensor

from t2i.core.seed import Streams
from t2i.data.shapes.captions import short
from t2i.diffusion.sampling import Sampling
from t2i.evals.batches import held_out
from t2i.evals.calibrate import calibrate
from t2i.stages.prior.sample import sample
from t2i.stages.registry import load_stage

CLAIM = Claim(
    17,
    "analytic_variances",
    "Analytic variances beat fixed ones at few steps",
    "Bao et al. 2022, arXiv 2201.06503, Tables 1 and 2; Ramesh et al. 2022 sample their prior so",
    "`t2i calibrate` measures the analytic variances of the bundled prior on pictures that training sees. It then "
    "draws an embedding for each held-out caption by ancestral sampling in few steps, without guidance, from the same "
    "noise with analytic, small (posterior) and large (β) fixed variances. What decides is the Fréchet distance to the "
    "embeddings of the captions' own pictures in 8 steps: to both fixed ones, paired by caption.",
)
KINDS = {"analytic": "analytic", "fixed_small": "fixed, small", "fixed_large": "fixed, large"}


def calibrated(lab: Lab) -> Any:
    """The bundled prior with analytic variances, made up where only the way is tried."""
    weights, folder = laboratory.ROOT / "weights" / "shapes", lab.folder / "prior"
    num = lab.choose("pictures of the calibration", 512, 0)
    if lab.tiny:
        prior: Any = load_stage(weights / "prior", expect="prior")
        prior.x_0_variance = torch.linspace(0.01, 1, prior.config.diffusion.num_steps)
        return prior
    if not (folder / "config.json").is_file():
        calibrate(str(weights / "prior"), str(weights / "clip"), folder, num=num, device="cpu")
    return load_stage(folder, expect="prior")


@torch.no_grad()
def run(lab: Lab) -> Result:
    prior, clip = calibrated(lab), load_stage(laboratory.ROOT / "weights" / "shapes" / "clip", expect="clip")
    few, all_steps = lab.choose("few steps", 8, 2), lab.choose("steps", [4, 8, 16, 32], [2])
    num, times = lab.choose("captions", 2000, 8), lab.choose("resamples", 200, 4)
    true: list[Tensor] = []
    drawn: dict[tuple[str, int], list[Tensor]] = {(kind, n): [] for kind in KINDS for n in all_steps}
    for seeds, captions, images in captioned(num):
        true.append(clip.encode_image(images))
        text = clip.encode_text(captions)
        for (kind, n), parts in drawn.items():
            how = replace(Sampling(n, "ddpm"), variance=kind)
            parts.append(sample(prior, text, Streams(seeds, "claim"), how, num_candidates=1))
    z, z_true = {key: torch.cat(parts).double() for key, parts in drawn.items()}, torch.cat(true).double()
    rows = {
        name: {
            f"{n} steps": resampled(lambda i, k=kind, n=n: frechet(z[k, n][i], z_true[i]), num, times)
            for n in all_steps
        }
        for kind, name in KINDS.items()
    }
    decides = []
    for kind in ("fixed_small", "fixed_large"):
        gained = resampled(
            lambda i, k=kind: frechet(z[k, few][i], z_true[i]) - frechet(z["analytic", few][i], z_true[i]), num, times
        )
        decides.append(Difference(f"Fréchet distance in {few} steps, {KINDS[kind]} - analytic", gained))
    covers = "Intervals are over captions, drawn anew with replacement; the network is one."
    return Result(rows, decides, covers, {"steps": all_steps})


def captioned(num: int) -> Any:
    """Seeds, short captions and pictures of held-out scenes, in batches."""
    for seeds, scenes, images in held_out(num, 64, seed=30_000, batch_size=100):
        yield (
            list(seeds),
            [short(scene, random.Random(seed)) for seed, scene in zip(seeds, scenes, strict=True)],
            images,
        )


def plot(figure: Any, result: Result) -> None:
    ax = figure.subplots()
    for name, row in result.rows.items():
        halves = [v.half for v in row.values()]
        ax.errorbar(result.data["steps"], [v.mean for v in row.values()], yerr=halves, fmt="o-", capsize=4, label=name)
    ax.set(xlabel="steps", ylabel="Fréchet distance to pictures' embeddings, CLIP", xscale="log", ylim=0)
    ax.set_xticks(result.data["steps"], result.data["steps"])
    ax.minorticks_off()
    ax.legend()


if __name__ == "__main__":
    main(CLAIM, run, plot)
