"""The degradations of BSRGAN (Zhang et al. 2021, arXiv 2103.14006), and the lighter ones that latent diffusion made of
them (Rombach et al. 2022, arXiv 2112.10752): what unCLIP's second upsampler forgives (section 2.1).

A picture is blurred twice, shrunk, resized, made noisy and compressed, in an order of its own, and at last compressed
once more. All that happens to it is drawn first, into a `Damage` that can be logged and replayed.

B batch · H W pixels, large · h w pixels, small · s scale, H / h · K width of a kernel
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.data.augment.degrade import jpeg
from t2i.data.augment.filters import Interpolation, convolve, covariance, gaussian_kernel, halve, resize, shifted_kernel

Step = Literal["blur", "blur_again", "shrink", "resize", "noise", "jpeg", "camera"]
STEPS: tuple[Step, ...] = ("blur", "blur_again", "shrink", "resize", "noise", "jpeg", "camera")
INTERPOLATIONS: tuple[Interpolation, ...] = ("linear", "cubic", "area")
T = TypeVar("T")


class Blur(Config):
    """A Gaussian of covariance R(angle) diag(variances) R(angle)ᵀ, in pixels², on `size` × `size` places."""

    variances: tuple[float, float]
    angle: float = 0.0
    size: int


class Resize(Config):
    """Divide the sides by `factor`."""

    factor: float
    how: Interpolation


class Decimate(Config):
    """Blur by a Gaussian of standard deviation `std` and keep every s-th pixel."""

    std: float


class Noise(Config):
    """Additive noise of standard deviation `level`, of 255 levels, its pixels drawn from `seed`; where it is correlated
    between colours so is its covariance."""

    kind: Literal["colour", "grey", "correlated"]
    level: int
    seed: int


class Damage(Config):
    """All that happens to one picture; `model_dump_json` writes it down and `model_validate_json` reads it again.

    Attributes:
        scale: s; what comes out has ⌊H/s⌋ × ⌊W/s⌋ pixels.
        halved: how the picture is halved before everything else, or None.
        order: of the steps; "camera" needs a model of one and does nothing, as in every release without it.
        jpeg, last_jpeg: quality within the order, or None, and at the end.
    """

    scale: int
    halved: Literal["linear", "cubic", "area", "antialiased"] | None
    order: tuple[Step, ...]
    blur: Blur
    blur_again: Blur | None
    shrink: Resize | Decimate
    resize: Interpolation
    noise: Noise
    jpeg: int | None
    last_jpeg: int


def bsr(x: Tensor, scale: int, streams: Streams, *, light: bool = False) -> Tensor:
    """Draw a `Damage` for each of (B, 3, H, W) in [-1, 1] from its own stream and do it, see `degrade`."""
    if len(streams) != len(x):
        raise ValueError(f"{len(x)} pictures need as many streams, got {len(streams)}")
    return degrade(x, [draw_damage(generator, scale, light=light) for generator in streams.generators])


def draw_damage(generator: torch.Generator, scale: int, *, light: bool = False) -> Damage:
    """What `degradation_bsrgan` draws, or with `light` latent diffusion's `degradation_bsrgan_light`."""
    chance = _Chance(generator)
    halved = None
    if scale == 4 and chance.of(0.25):
        halved = "antialiased" if chance.of(0.5) else chance.one_of(INTERPOLATIONS)
    s = scale // 2 if halved else scale
    order = [STEPS[i] for i in torch.randperm(len(STEPS), generator=generator).tolist()]
    shrinks = chance.of(0.8 if light else 0.75)
    kinds: tuple[Literal["colour", "grey", "correlated"], ...] = ("colour",) * 2 + ("grey",) * 2 + ("correlated",)
    kind, loudest = chance.one_of(kinds), 2 if light else 25
    level = loudest if kind == "correlated" else chance.whole(1 if light else 2, loudest)
    worst = 80 if light else 30
    return Damage(
        scale=scale,
        halved=halved,
        order=arranged(order),
        blur=_draw_blur(chance, s, light),
        blur_again=None if light else _draw_blur(chance, s, light),
        shrink=Resize(factor=chance.uniform(1, 2 * s), how=chance.one_of(INTERPOLATIONS))
        if shrinks
        else Decimate(std=chance.uniform(0.1, 0.6 * s)),
        resize=chance.one_of(INTERPOLATIONS),
        noise=Noise(kind=kind, level=level, seed=chance.whole(0, 2**62)),
        jpeg=chance.whole(worst, 95) if chance.of(0.9) else None,
        last_jpeg=chance.whole(worst, 95),
    )


def arranged(order: Sequence[Step]) -> tuple[Step, ...]:
    """An order of the steps, with "shrink" and "resize" in each other's place if they were the wrong way round."""
    swapped = {"shrink": "resize", "resize": "shrink"}
    wrong = order.index("shrink") > order.index("resize")
    return tuple(swapped.get(step, step) if wrong else step for step in order)  # type: ignore[misc]


def degrade(x: Tensor, damages: Sequence[Damage]) -> Tensor:
    """Do to each of (B, 3, H, W) in [-1, 1] what its `Damage` says: (B, 3, ⌊H/s⌋, ⌊W/s⌋), 8 bits deep, float32.

    A picture at a time, since orders and sizes differ. On a GPU this waits for every JPEG.
    """
    with torch.autocast(x.device.type, enabled=False):
        small = torch.cat([_degrade(x[i : i + 1].float(), damage) for i, damage in enumerate(damages)])
        return jpeg(small, torch.tensor([damage.last_jpeg for damage in damages]))


def _degrade(x: Tensor, damage: Damage) -> Tensor:
    """All but the last compression of one picture, (1, 3, H, W) → (1, 3, h, w)."""
    s, (H, W) = damage.scale, x.shape[2:]
    if min(H, W) < s:
        raise ValueError(f"a picture of {H}×{W} cannot be shrunk by {s}")
    x = x[..., : H - H % s, : W - W % s]
    if damage.halved is not None:
        x, s = halve(x, damage.halved).clamp(-1, 1), s // 2
    H, W = x.shape[2:]
    blurs = {"blur": damage.blur, "blur_again": damage.blur_again}
    for step in damage.order:
        if (blur := blurs.get(step)) is not None:
            x = convolve(x, gaussian_kernel(blur.size, covariance(blur.variances, blur.angle)))
        elif step == "shrink":
            x = _shrink(x, damage.shrink, s).clamp(-1, 1)
        elif step == "resize":
            x = resize(x, (H // s, W // s), damage.resize).clamp(-1, 1)
        elif step == "noise":
            x = (x + upload(noise_like(x[0], damage.noise), x.device)).clamp(-1, 1)
        elif step == "jpeg" and damage.jpeg is not None:
            x = jpeg(x, torch.tensor([damage.jpeg]))
    return x


def _shrink(x: Tensor, shrink: Resize | Decimate, s: int) -> Tensor:
    if isinstance(shrink, Decimate):
        return convolve(x, shifted_kernel(shrink.std, s))[..., ::s, ::s]
    h, w = (max(int(side / shrink.factor), 1) for side in x.shape[2:])
    return resize(x, (h, w), shrink.how)


def noise_like(x: Tensor, noise: Noise) -> Tensor:
    """Noise for a picture (3, H, W) in [-1, 1], on the CPU; (1, H, W) if it is grey."""
    generator = torch.Generator().manual_seed(noise.seed)
    std = 2 * noise.level / 255
    if noise.kind != "correlated":
        return std * torch.randn(1 if noise.kind == "grey" else 3, *x.shape[1:], generator=generator)
    weights, basis = (torch.rand(*n, generator=generator, dtype=torch.float64) for n in ((3,), (3, 3)))
    basis = torch.linalg.svd(basis).U
    values, vectors = torch.linalg.eigh((basis.T * weights @ basis).abs())  # perhaps of an indefinite matrix, then
    root = (vectors * values.abs().sqrt() @ vectors.T).float()
    return std * torch.einsum("ij,jhw->ihw", root, torch.randn(3, *x.shape[1:], generator=generator))


class _Chance:
    """Draws from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def whole(self, low: int, high: int) -> int:
        """Both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def of(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.whole(0, len(choices) - 1)]


def _draw_blur(chance: _Chance, s: int, light: bool) -> Blur:
    """An anisotropic or an isotropic Gaussian, each as often as the other."""
    weaker, stretched = 4 if light else 1, chance.of(0.5)
    size = 3 + (chance.whole(2, 11 if stretched else 4) if light else 2 * chance.whole(2, 11))
    if stretched:
        widest = (4 + s) / weaker
        variances = (chance.uniform(0, widest), chance.uniform(0, widest))
        return Blur(variances=variances, angle=chance.uniform(0, math.pi), size=size)
    variance = chance.uniform(0, (2 + 0.2 * s) / weaker) ** 2
    return Blur(variances=(variance, variance), size=size)
