"""Claim 08: the scale of a classifier's gradient trades diversity for fidelity."""

from typing import Any

from classes import drawn, labels, right
from lab import Claim, Difference, Lab, Result, Value, diversity, embedded, main, paired

CLAIM = Claim(
    8,
    "classifier_scale",
    "A larger scale of the classifier's gradient trades diversity for fidelity",
    "Dhariwal & Nichol 2021, arXiv 2105.05233, section 4.3, Figures 3 and 4",
    "The bundled ADM draws all 60 classes at rising scales of its classifier, from the same noise. Fidelity is how "
    "often the reader finds the class that was asked for and nothing else, diversity the mean cosine distance of two "
    "pictures of one class in CLIP's embeddings. What decides is scale 10 against none.",
)


def run(lab: Lab) -> Result:
    num, classes = lab.choose("pictures a class", 8, 2), lab.choose("classes", 60, 2)
    steps, scales = lab.choose("steps", 50, 2), lab.choose("scales", [0.0, 1.0, 3.0, 10.0], [0.0, 10.0])
    share, apart, rows = {}, {}, {}
    for scale in scales:
        images = drawn(num, steps, classes=classes, classifier=scale)
        share[scale], apart[scale] = right(images, labels(num)[: len(images)]), diversity(embedded(images), num)
        rows[f"scale {scale:g}"] = {"right, %": Value.of(share[scale]), "diversity": Value.of(apart[scale])}
    decides = [
        Difference("right, 10 - 0, points", paired(share[10.0], share[0.0])),
        Difference("diversity, 0 - 10", paired(apart[0.0], apart[10.0])),
    ]
    return Result(rows, decides, "Intervals are over pictures, and over classes, paired; the networks are one each.")


def plot(figure: Any, result: Result) -> None:
    ax = figure.subplots()
    for name, row in result.rows.items():
        x, y = row["diversity"], row["right, %"]
        ax.errorbar([x.mean], [y.mean], xerr=[x.half], yerr=[y.half], fmt="o", capsize=3, label=name)
    ax.set(xlabel="diversity: cosine distance within a class", ylabel="right, %")
    ax.legend()


if __name__ == "__main__":
    main(CLAIM, run, plot)
