"""From noise to data: each sampler is one published algorithm in one function.

All share `sampler(denoise, x_T, process, *, noise, callback) → x_0`: `denoise` is any `Denoiser` on `process`, x_T
(B, C, …) the state at its last step, `noise` where random numbers come from. After each step,
`callback(done, num_steps, x, prediction)` is told how many are done, the new state and what the denoiser had said.
All in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from t2i.core.types import Denoiser, NoiseSource, Prediction, StepCallback
from t2i.diffusion.prediction import x_0_from_eps
from t2i.diffusion.process import Process


@torch.no_grad()
def ddpm(
    denoise: Denoiser,
    x_T: Tensor,
    process: Process,
    *,
    noise: NoiseSource | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): one fresh noise per step except the last."""
    if noise is None and process.num_steps > 1:
        raise ValueError("ddpm draws noise at every step: pass noise, for example t2i.core.seed.Streams(seeds)")
    x = x_T.float()
    for step in reversed(range(process.num_steps)):
        p = denoise(x, step)
        x = process.posterior_mean(p.x_0, x, step)  # eq. 7
        if step > 0 and noise is not None:
            x = x + torch.exp(0.5 * p.log_variance) * _draw(noise, x)
        _tell(callback, process.num_steps - step, process, x, p)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x_T: Tensor,
    process: Process,
    *,
    eta: float = 0.0,
    until: int = 0,
    noise: NoiseSource | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12 and 16); eta 0 is deterministic and draws nothing, eta 1 has DDPM's small
    variance. A learned variance is not used. 1 - alpha_bar is formed in float32, as the released samplers do.

    `until` is the last step that is taken; above 0 the state at the step below it is returned.
    """
    if not 0 <= eta <= 1 or (eta > 0 and noise is None):
        raise ValueError(f"ddim needs eta in 0…1, and noise if eta is above 0; got eta {eta}, noise {noise}")
    x, num_moves = x_T.float(), process.num_steps - until
    for step in reversed(range(until, process.num_steps)):
        p = denoise(x, step)
        alpha_bar, before = process.at("alpha_bar", step, x), process.at("alpha_bar_prev", step, x)
        sigma = eta * ((1 - before) / (1 - alpha_bar)).sqrt() * (1 - alpha_bar / before).sqrt()  # eq. 16
        x = before.sqrt() * p.x_0 + (1 - before - sigma**2).clamp(min=0).sqrt() * p.eps  # eq. 12
        if eta > 0 and step > 0 and noise is not None:
            x = x + sigma * _draw(noise, x)
        if callback is not None:
            callback(process.num_steps - step, num_moves, x, p)
    return x


@torch.no_grad()
def ddim_invert(
    denoise: Denoiser,
    x_0: Tensor,
    process: Process,
    *,
    to_noise: bool = False,
    corrections: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """Run DDIM's ordinary differential equation from data to noise (Song et al. 2020, eq. 14, backwards).

    x_0 is taken as the state at step 0; num_steps - 1 moves lead to the state at the last step, from where `ddim` comes
    back to x_0 up to an error that shrinks with the number of steps. `to_noise` moves once more, to alpha_bar = 0, and
    returns eps. For a faithful return let `denoise` leave x_0 unclipped.

    A move takes eps from where it starts, `ddim` on its way back from where it ended. Each of `corrections` asks the
    denoiser there and moves again (fixed-point iteration, Pan et al. 2023, arXiv 2309.04907), which brings `ddim`
    nearer to x_0 than as many more steps do.
    """
    x = x_0.float()
    num_moves = process.num_steps - (0 if to_noise else 1)
    for step in range(num_moves):
        p = denoise(x, step)
        after = process.at("alpha_bar_next", step, x)
        moved = after.sqrt() * p.x_0 + (1 - after).sqrt() * p.eps
        for _ in range(corrections if step + 1 < process.num_steps else 0):
            eps = denoise(moved, step + 1).eps
            moved = after.sqrt() * x_0_from_eps(process, x, eps, step) + (1 - after).sqrt() * eps
        x = moved
        _tell(callback, step + 1, process, x, p)
    return x


@torch.no_grad()
def dpm_solver_pp_2m(
    denoise: Denoiser,
    x_T: Tensor,
    process: Process,
    *,
    noise: NoiseSource | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from one call per step; deterministic, `noise` is
    not drawn from. The first move is of first order, and so are the last two: the one into step 0 is several times as
    long in log SNR as the one before it, too far to extrapolate, and the last one ends at sigma = 0."""
    alpha, sigma = process.tables["sqrt_alpha_bar"].tolist(), process.tables["sqrt_one_minus_alpha_bar"].tolist()
    half_log_snr = (0.5 * process.snr.log()).tolist()  # lambda = log(alpha / sigma)
    x, x_0_before, h_before = x_T.float(), None, 0.0
    for step in reversed(range(process.num_steps)):
        p = denoise(x, step)
        if step == 0:
            x = p.x_0
        else:
            h = half_log_snr[step - 1] - half_log_snr[step]
            data = p.x_0
            if x_0_before is not None and step > 1:
                data = p.x_0 + h / (2 * h_before) * (p.x_0 - x_0_before)  # D_i; r_i = h_before / h
            x = sigma[step - 1] / sigma[step] * x - alpha[step - 1] * math.expm1(-h) * data
            x_0_before, h_before = p.x_0, h
        _tell(callback, process.num_steps - step, process, x, p)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddpm": ddpm, "ddim": ddim, "dpm_solver_pp_2m": dpm_solver_pp_2m}
OPTIONS: dict[str, tuple[str, ...]] = {"ddim": ("eta",)}
"""Those of a sampler that `Sampling` has a field for."""


def _draw(noise: NoiseSource, x: Tensor) -> Tensor:
    """Noise of the shape of x, from the CPU to its device."""
    return noise.normal(*x.shape[1:]).to(x.device, non_blocking=True)


def _tell(callback: StepCallback | None, done: int, process: Process, x: Tensor, prediction: Prediction) -> None:
    if callback is not None:
        callback(done, process.num_steps, x, prediction)
