"""Claim 20: generators trained on descriptive captions follow captions better."""

from typing import Any

from blend import NAMES, arms
from lab import Claim, Difference, Lab, Result, apart, bars, main

CLAIM = Claim(
    20,
    "descriptive_captions",
    "Generators trained on descriptive synthetic captions follow prompts better than those trained on the web's "
    "captions",
    "Betker et al. 2023, Improving Image Generation with Better Captions, section 3",
    "Six generators of example 12, trained on the same 16,000 pictures with as many blends of captions. The share of "
    "a scene's things that are drawn right, asked in descriptive captions: trained on 95 % descriptive ones against "
    "careless ones alone.",
)
THINGS = NAMES["things"]


def run(lab: Lab) -> Result:
    rows = arms(lab, "descriptive")
    gain = apart(rows["95 % descriptive"][THINGS], rows["100 % alt"][THINGS])
    decides = [Difference("things right, 95 % descriptive - 100 % alt, points", gain)]
    return Result(
        rows, decides, "Intervals are over scenes, unpaired; each blend was trained once, which they leave out."
    )


def plot(figure: Any, result: Result) -> None:
    bars(figure.subplots(), result.rows, THINGS, f"{THINGS}, asked in descriptive captions")


if __name__ == "__main__":
    main(CLAIM, run, plot)
