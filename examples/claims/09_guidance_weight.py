"""Claim 09: the weight of classifier-free guidance trades Fréchet distance for Inception Score."""

from typing import Any

from classes import drawn, inception_score, probabilities, renders
from lab import Claim, Difference, Lab, Result, embedded, frechet, main, resampled

CLAIM = Claim(
    9,
    "guidance_weight",
    "The weight of classifier-free guidance trades Fréchet distance for Inception Score",
    "Ho & Salimans 2022, arXiv 2207.12598, section 4, Table 1",
    "The bundled ADM, which knows an absent class, draws all 60 classes at rising scales of classifier-free guidance "
    "(1 is none), from the same noise. The Inception Score is of the bundled classifier's 60 classes, the Fréchet "
    "distance in CLIP's embeddings to held-out renders, as many of each class. What decides is scale 6 against 1: "
    "both must rise.",
)


def run(lab: Lab) -> Result:
    num, classes = lab.choose("pictures a class", 10, 2), lab.choose("classes", 60, 2)
    steps, scales = lab.choose("steps", 50, 2), lab.choose("scales", [1.0, 1.5, 3.0, 6.0], [1.0, 6.0])
    true, rows, p, z = renders(num)[: classes * num], {}, {}, {}
    for scale in scales:
        images = drawn(num, steps, classes=classes, decoder=scale)
        p[scale], z[scale] = probabilities(images), embedded(images)
        rows[f"scale {scale:g}"] = {
            "Inception Score": resampled(lambda i, s=scale: inception_score(p[s][i]), len(true)),
            "Fréchet, CLIP": resampled(lambda i, s=scale: frechet(z[s][i], true[i]), len(true)),
        }
    surer = resampled(lambda i: inception_score(p[6.0][i]) - inception_score(p[1.0][i]), len(true))
    farther = resampled(lambda i: frechet(z[6.0][i], true[i]) - frechet(z[1.0][i], true[i]), len(true))
    decides = [Difference("Inception Score, 6 - 1", surer), Difference("Fréchet distance, 6 - 1", farther)]
    return Result(rows, decides, "Intervals are over pictures, paired by class and noise; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    ax = figure.subplots()
    for name, row in result.rows.items():
        x, y = row["Inception Score"], row["Fréchet, CLIP"]
        ax.errorbar([x.mean], [y.mean], xerr=[x.half], yerr=[y.half], fmt="o", capsize=3, label=name)
    ax.set(xlabel="Inception Score by the bundled classifier", ylabel="Fréchet distance, CLIP")
    ax.legend()


if __name__ == "__main__":
    main(CLAIM, run, plot)
