"""The discriminator that reconstructions are made sharp against: PatchGAN (Isola et al. 2017, arXiv 1611.07004), with a
hinge loss (Lim & Ye 2017, arXiv 1705.02894), weighed as in Esser et al. 2021 (arXiv 2012.09841, equation 7).

B batch · H W pixels · h w patches that are judged
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512)
_LARGEST = 1e4  # of the adaptive weight
SMALLEST = 32
"""Side of pictures, in pixels, of which there are several patches."""


class Discriminator(nn.Module):
    """`discriminator(pictures) → logits` of overlapping patches of 70 pixels, above 0 for real ones; 2,765,633
    parameters. `step` counts the steps of the training, so that a run that goes on knows where it is."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, width in pairwise(_WIDTHS):
            stride = 1 if width == _WIDTHS[-1] else 2
            layers += [nn.Conv2d(before, width, 4, stride, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(_WIDTHS[-1], 1, 4, 1, 1))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
                nn.init.zeros_(module.bias) if module.bias is not None else None
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 1, h, w)."""
        logits: Tensor = self.layers(x)
        return logits.float()


def hinge(real: Tensor, drawn: Tensor) -> Tensor:
    """½ (mean ReLU(1 - D(x)) + mean ReLU(1 + D(x̂))) of each picture, from logits (B, 1, h, w): (B,)."""
    return 0.5 * (F.relu(1 - real) + F.relu(1 + drawn)).mean(dim=(1, 2, 3))


def adaptive_weight(likelihood: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the discriminator counts, so that both losses pull equally at the `last` weight of the decoder:
    ‖∇ likelihood‖ / (‖∇ adversarial‖ + 1e-4), at most 10,000; a number without a gradient."""
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (likelihood, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, _LARGEST).detach()
