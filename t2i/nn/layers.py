"""The small layers every network here is made of.

Legend: B batch · C channels · H W pixels · D width · G groups.
"""

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TimeOrder = Literal["cos_sin", "sin_cos"]
POSITION_OCTAVES = 4
M = TypeVar("M", bound=nn.Module)


def zero_module(module: M) -> M:
    """Set every parameter of `module` to zero, so that its branch starts as nothing (ADM, Dhariwal & Nichol 2021)."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def fit(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the dtype of a weight that it is about to meet, unless autocast sees to that."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def timestep_embedding(
    t: Tensor, width: int, *, order: TimeOrder = "cos_sin", denominator_shift: int = 0, longest: float = 10000.0
) -> Tensor:
    """Sinusoids of a timestep or a position (Vaswani et al. 2017, section 3.5, as DDPM and IDDPM lay them out).

    f_i = longest^(-i / (half - denominator_shift)), i = 0 … half-1, half = width / 2.

    Args:
        t: (B,) integer or fractional timesteps.
        width: size of the result; an odd width gets a zero column.
        order: which half comes first; IDDPM and later put cosines first, DDPM sines.
        denominator_shift: 0 for IDDPM and later, 1 for DDPM.
        longest: bound of the sinusoids' periods, over 2π; the slowest is a step of the series below it.

    Returns:
        (B, width) float32, whatever the autocast state.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(longest) * steps / (half - denominator_shift))
    angles = t.float()[:, None] * frequencies  # (B, half)
    parts = [angles.cos(), angles.sin()]
    return F.pad(torch.cat(parts if order == "cos_sin" else parts[::-1], dim=1), (0, width % 2))


def pixel_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids of where a pixel is, in parts of the picture and so the same at every size (Tancik et al. 2020, eq. 5).

    Over u = -1 … 1, the centres of the rows and then of the columns: sin(2^i · πu/2) and cos(2^i · πu/2), i = 0 … 3.

    Returns:
        (height · width, 16) float32, row by row.
    """
    frequencies = math.pi / 2 * 2.0 ** torch.arange(POSITION_OCTAVES, device=device)
    sides = []
    for n in (height, width):
        angles = ((2 * torch.arange(n, device=device) + 1) / n - 1)[:, None] * frequencies  # (n, octaves)
        sides.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    y, x = sides
    return torch.cat([y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)], dim=2).flatten(0, 1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32, optionally modulated, optionally followed by SiLU.

    y = SiLU(norm(x) · (1 + scale) + shift), the adaptive form of ADM eq. (4.3); `scale` and `shift` are (B, C).
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
            if scale is not None:
                assert shift is not None
                y = y * (1 + scale.float()[:, :, None, None]) + shift.float()[:, :, None, None]
            return (F.silu(y) if silu else y).to(x.dtype)


def masked(image: Tensor, mask: Tensor) -> Tensor:
    """What a network that inpaints sees beside x_t: the picture where it is known, and the mask (GLIDE, section 3.2).

    Args:
        image: (B, 3, H, W).
        mask: (B, 1, H, W), 1 where it is known.

    Returns:
        (B, 4, H, W)

    Raises:
        ValueError: if the mask is not of the picture's size.
    """
    if mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit pictures of shape {tuple(image.shape)}")
    mask = mask.to(image.dtype)
    return torch.cat([image * mask, mask], dim=1)
