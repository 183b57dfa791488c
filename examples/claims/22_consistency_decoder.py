"""Claim 22: a consistency decoder in two evaluations beats the decoder of the autoencoder."""

from typing import Any

import lab as laboratory
from lab import Claim, Difference, Lab, Result, Value, bars, main, paired

from t2i.evals.latents import latents

CLAIM = Claim(
    22,
    "consistency_decoder",
    "A consistency decoder in two evaluations gives back more of a picture than the autoencoder's decoder",
    "Betker et al. 2023 (DALL-E 3), appendix A",
    "The bundled autoencoder makes 32 × 32 latents of held-out renders of 256 px; its own decoder and the bundled "
    "consistency decoder, in two evaluations, make pictures of the same latents. The paper speaks of fine details and "
    "gives no number: what decides is the peak signal-to-noise ratio of whole pictures, and of what is checkered or "
    "striped the distance in features of the bundled reader (LPIPS' formula).",
)
MEASURES = {
    "psnr": "whole pictures, dB",
    "psnr of patterns": "patterns, dB",
    "distance of patterns": "patterns, distance in features",
}
NAMES = {"autoencoder": "autoencoder's decoder", "consistency decoder": "consistency decoder"}


def run(lab: Lab) -> Result:
    num, size = lab.choose("renders", 300, 6), lab.choose("size", 256, 64)
    first = lab.choose("first scene", 5000, 5000)
    folder = laboratory.ROOT / "weights" / "shapes-dalle3"
    how = {"num": num, "seed": first, "size": size, "device": "cpu"}
    values = latents(str(folder / "autoencoder"), str(folder / "consistency"), **how).facts["values"]
    rows = {NAMES[way]: {MEASURES[m]: Value.of(v) for m, v in row.items() if v} for way, row in values.items()}
    ours, theirs = values["consistency decoder"], values["autoencoder"]
    decides = [Difference("PSNR, consistency - autoencoder's, dB", paired(ours["psnr"], theirs["psnr"]))]
    if fine := theirs["distance of patterns"]:
        nearer = paired(fine, ours["distance of patterns"])
        decides.append(Difference("distance of patterns, autoencoder's - consistency", nearer))
    return Result(rows, decides, "Intervals are over pictures or things, paired; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    measures = [name for name in MEASURES.values() if all(name in row for row in result.rows.values())]
    for ax, what in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        bars(ax, result.rows, what, what)
        ax.tick_params("x", rotation=20)


if __name__ == "__main__":
    main(CLAIM, run, plot)
