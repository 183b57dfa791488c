"""Analytic-DPM: the best variance of a step back, for a network that is trained already (Bao et al. 2022a).

B batch · d dimensions of a sample · T steps of the training process

Among Gaussian steps from x_n to x_{n-1} those of the right mean and of this variance are the most likely (theorem 1):

    sigma_n² = lambda_n² + (sqrt(beta_bar_n / alpha_n) - sqrt(beta_bar_{n-1} - lambda_n²))² (1 - Gamma_n)

alpha_n being alpha_bar_n / alpha_bar_{n-1} of the trajectory, beta_bar 1 - alpha_bar, and Gamma_n = E |eps(x_n)|² / d
of the exact eps, E[noise | x_n] (the paper's Gamma is that of the score, eps / sqrt(beta_bar_n)). With DDPM's lambda²,
the posterior's variance, what is squared is the factor of x_0 in the posterior's mean over sqrt(SNR_n), so that

    sigma_n² = lambda_n² + posterior_x_0² v_n,      v_n = (1 - Gamma_n) / SNR_n = E |x_0(x_n) - x_0|² / d

where v_n is what is left of the variance of x_0 once x_n is known. It is the same for every subset of the steps. This
table is kept, and not Gamma, which is 1 up to rounding where SNR is small. It is measured as a squared error, not as
(1 - E |eps|² / d) / SNR: that is right for the mean of an inexact network, too (Bao et al. 2022b), and what chance does
to an average is not divided by SNR.

The paper clips sigma² from below to lambda² and, for data in [a, b], from above to lambda² + posterior_x_0² (b - a)²/4
(section 3.1). In v these are 0, which a squared error keeps, and the `bound` of `measured`. Its clipping of the noise
that is left in 8-bit pixels by the last steps has no counterpart in data without levels.

Bao et al. 2022a, arXiv 2201.06503 · Bao et al. 2022b, arXiv 2206.07309
"""

import torch
from torch import Tensor

from t2i.core.types import Denoiser, NoiseSource
from t2i.diffusion.process import Process, Step

_SMALLEST = 1e-20  # a variance; its logarithm is finite


@torch.no_grad()
def squared_errors(denoise: Denoiser, process: Process, x_0: Tensor, noise: NoiseSource) -> Tensor:
    """|x_0(x_n) - x_0|² / d of every sample at every step, (B, T) float64 on the CPU; their mean over samples is v.

    Args:
        denoise: on the same process, as it will sample, but unguided: guidance moves the mean away from that
            of the data, and no variance makes up for it.
        x_0: (B, C, …) data.
        noise: drawn from once per step, step 0 first.
    """
    rows = []
    for step in range(process.num_steps):
        x_t = process.q_sample(x_0, step, noise.normal(*x_0.shape[1:]).to(x_0.device))
        rows.append((denoise(x_t, step).x_0 - x_0).square().flatten(1).mean(dim=1, dtype=torch.float64))  # (B,)
    return torch.stack(rows, dim=1).cpu()


def measured(errors: Tensor, bound: float) -> Tensor:
    """The v (T,) float32 from squared errors (B, T) of many samples, at most `bound`: ((b - a) / 2)² of data in [a, b],
    or the variance of the data, which knowing x_n does not increase."""
    return errors.mean(dim=0).clamp(max=bound).float()


def log_variance(process: Process, x_0_variance: Tensor, x_t: Tensor, step: Step) -> Tensor:
    """The log sigma_n² at a step of any trajectory, ready to be broadcast to x_t (B, C, …), float32.

    `x_0_variance` is v (T,) of the training process, on the device of x_t.
    """
    if isinstance(step, Tensor):
        v = x_0_variance[torch.tensor(process.positions, device=x_t.device)[step.to(x_t.device)]]
    else:
        v = x_0_variance[process.positions[step]]
    v = v.reshape(-1, *[1] * (x_t.ndim - 1))
    variance = process.at("posterior_variance", step, x_t) + process.at("posterior_x_0", step, x_t).square() * v
    return variance.clamp(min=_SMALLEST).log()
