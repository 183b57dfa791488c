"""Claim 05: attention at more resolutions makes better pictures."""

from adm import PAPER, TRIED, compare, plot
from lab import Claim, Lab, Result, main

CLAIM = Claim(5, "attention_resolutions", "Attention at more resolutions makes better pictures", PAPER, TRIED)


def run(lab: Lab) -> Result:
    return compare(lab, CLAIM, "attention at two resolutions", "model.unet.attention=[1,2]")


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
