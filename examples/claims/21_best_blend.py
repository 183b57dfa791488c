"""Claim 21: of all blends that with 95 % synthetic captions is the best."""

from typing import Any

from blend import NAMES, arms
from lab import Claim, Difference, Lab, Result, apart, bars, main

CLAIM = Claim(
    21,
    "best_blend",
    "Of all blends that of 95 % descriptive and 5 % ground-truth captions is the best",
    "Betker et al. 2023, Improving Image Generation with Better Captions, section 3.3, Figure 5",
    "Generators of example 12, trained with 65, 80, 90 and 95 % descriptive captions. What decides is the paper's "
    "measure, the CLIP score of pictures that are asked for in the captions that the scenes came with, of 95 % "
    "against 65 %.",
)
CLIP = NAMES["clip"]


def run(lab: Lab) -> Result:
    rows = {arm: row for arm, row in arms(lab, "alt").items() if "descriptive" in arm}
    gain = apart(rows["95 % descriptive"][CLIP], rows["65 % descriptive"][CLIP])
    decides = [Difference("CLIP score asked in alt captions, 95 % - 65 %", gain)]
    return Result(
        rows, decides, "Intervals are over scenes, unpaired; each blend was trained once, which they leave out."
    )


def plot(figure: Any, result: Result) -> None:
    bars(figure.subplots(), result.rows, CLIP, "CLIP score, asked in alt captions")


if __name__ == "__main__":
    main(CLAIM, run, plot)
