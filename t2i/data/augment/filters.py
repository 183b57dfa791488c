"""Kernels and resizing as OpenCV, SciPy and MATLAB do them, on tensors.

B batch · C channels · H W pixels · K width of a kernel
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.core.seed import upload

Interpolation = Literal["linear", "cubic", "area"]


def covariance(variances: tuple[float, float], angle: float) -> Tensor:
    """R(angle) diag(variances) R(angle)ᵀ, (2, 2) float64; the first axis lies along W."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return rotation * torch.tensor(variances, dtype=torch.float64).clamp(min=1e-3) @ rotation.T


def gaussian_kernel(size: int, sigma: Tensor) -> Tensor:
    """exp(-pᵀ Σ⁻¹ p / 2) over the places of a square, relative to its centre, of sum 1: (K, K) float64."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    p = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)  # (K, K, 2)
    exponent = -0.5 * torch.einsum("hwi,ij,hwj->hw", p, torch.linalg.inv(sigma), p)
    return exponent.flatten().softmax(0).view(size, size)  # narrow ones of even size would be 0 / 0


def shifted_kernel(std: float, scale: int) -> Tensor:
    """25 × 25 places of a Gaussian whose centre lies (s - 1) / 2 pixels to the top left, so that every s-th pixel of
    what it blurs is that of a block's centre; looked up between places, and beyond the edge at the edge."""
    size = 25
    at = torch.arange(size, dtype=torch.float64)
    line = torch.exp(-0.5 * ((at - (size - 1) / 2) / std) ** 2)
    where = (at + (scale - 1) / 2).clamp(max=size - 1)
    low = where.floor().long()
    line = torch.lerp(line[low], line[(low + 1).clamp(max=size - 1)], where - low)
    line = line / line.sum()
    return line[:, None] * line


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of (B, C, H, W) with (K, K), mirrored at pixels of the edge; an even kernel's middle is at K / 2.

    By Fourier transforms: on a 256 pixel picture and 25 × 25 places five times as fast as directly.
    """
    size = kernel.shape[0]
    before, after = size - 1 - size // 2, size // 2
    rows, columns = (_mirrored(side, before, after, repeat=False, device=x.device) for side in x.shape[2:])
    padded = x[..., rows[:, None], columns]
    shape = padded.shape[2:]
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(upload(kernel.float(), x.device), s=shape)
    return torch.fft.irfft2(product, s=shape)[..., size - 1 :, size - 1 :]


def resize(x: Tensor, size: tuple[int, int], how: Interpolation) -> Tensor:
    """(B, C, H, W) → (B, C, *size) as OpenCV does it, without antialiasing; "area" averages what a pixel covers."""
    if how != "area":
        mode = {"linear": "bilinear", "cubic": "bicubic"}[how]
        return F.interpolate(x, size=size, mode=mode, align_corners=False)
    rows, columns = (upload(_cover(n, m), x.device) for n, m in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


def halve(x: Tensor, how: Literal["linear", "cubic", "area", "antialiased"]) -> Tensor:
    """Half of both sides; "antialiased" is MATLAB's bicubic, which mirrors the picture at its edges."""
    size = (x.shape[2] // 2, x.shape[3] // 2)
    if how != "antialiased":
        return resize(x, size, how)
    rows, columns = (_mirrored(side, 4, 4, repeat=True, device=x.device) for side in x.shape[2:])
    padded = x[..., rows[:, None], columns]
    return F.interpolate(padded, size=(size[0] + 4, size[1] + 4), mode="bicubic", antialias=True)[..., 2:-2, 2:-2]


def _cover(n: int, m: int) -> Tensor:
    """Share of each of m pixels, all as wide as n, that is covered by each of n: (m, n), rows of sum 1."""
    edges = torch.arange(m + 1, dtype=torch.float64) * n / m
    pixel = torch.arange(n, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (shared.clamp(min=0) * m / n).float()


def _mirrored(n: int, before: int, after: int, *, repeat: bool, device: torch.device) -> Tensor:
    """Indices of n pixels with as many mirrored ones as wanted on both sides; `repeat` says whether the edge is."""
    period = 2 * n if repeat else max(2 * n - 2, 1)
    at = torch.arange(-before, n + after, device=device) % period
    return torch.minimum(at, (period - 1 if repeat else period) - at)
