"""Claim 07: more heads of attention make better pictures."""

from adm import PAPER, TRIED, compare, plot
from lab import Claim, Lab, Result, main

CLAIM = Claim(7, "more_heads", "More heads of attention make better pictures", PAPER, TRIED)


def run(lab: Lab) -> Result:
    return compare(lab, CLAIM, "four heads", "model.unet.num_heads=4")


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
