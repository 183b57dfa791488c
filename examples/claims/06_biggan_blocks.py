"""Claim 06: BigGAN's residual blocks for up- and downsampling make better pictures."""

from adm import PAPER, TRIED, compare, plot
from lab import Claim, Lab, Result, main

CLAIM = Claim(
    6, "biggan_blocks", "BigGAN's residual blocks for up- and downsampling make better pictures", PAPER, TRIED
)


def run(lab: Lab) -> Result:
    return compare(lab, CLAIM, "BigGAN blocks", "model.unet.resample=block")


if __name__ == "__main__":
    main(CLAIM, run, plot, seeds=5)
