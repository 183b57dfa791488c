"""What a diffusion network is trained on, per sample.

B batch. Every function returns (B,) float32: means over all dimensions of a sample; bounds are in bits per dimension.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from t2i.core.types import Prediction
from t2i.diffusion.prediction import Parametrisation
from t2i.diffusion.process import Process, Step

LossKind = Literal["simple", "hybrid", "mse", "rescaled_mse", "vlb", "kl", "rescaled_kl"]
LOSS_KINDS: tuple[str, ...] = ("simple", "hybrid", "mse", "rescaled_mse", "vlb", "kl", "rescaled_kl")
Weighting = Literal["uniform", "min_snr", "clamped_snr"]
WEIGHTINGS: tuple[str, ...] = ("uniform", "min_snr", "clamped_snr")
_GAMMA = 5.0  # Hang et al. 2023, section 3.4


def training_losses(
    process: Process,
    parametrisation: Parametrisation,
    raw_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    step: Step,
    kind: LossKind = "hybrid",
    weighting: Weighting = "uniform",
    vb_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Losses of one training step.

    Args:
        raw_output: the network's output at x_t = `process.q_sample(x_0, step, noise)`.
        step: (B,) steps of `process`.
        kind: with mse the squared error of the target and vb the term of the variational bound at `step`, T steps:
            "simple" mse (Ho et al. 2020, eq. 14);
            "hybrid", also "rescaled_mse": mse + vb · T / 1000 (Nichol & Dhariwal 2021, eq. 16);
            "mse": mse + vb, as ADM trains;
            "vlb", also "kl": vb;
            "rescaled_kl": vb · T, whose mean over steps is the whole bound.
            Where mse is present, vb trains the learned variance only; with a fixed variance it is left out.
        weighting: of mse, expressed for the target: "min_snr" weighs an error of x_0 by min(SNR, 5) (Hang et al.
            2023), "clamped_snr" never by less than 1, so that noisy steps, which compose the picture, keep their
            weight (the truncated SNR of Salimans & Ho 2022, section 4); "uniform" not at all.
        vb_weight: of vb beside mse, as a share of the weight above. A network that predicts x_0 has a vb so large at
            the last steps that it would drown mse in the gradient.

    Returns "loss" and, where present, "mse" (before weighting) and "vb". Raises ValueError for an unknown kind.
    """
    if kind not in LOSS_KINDS or weighting not in WEIGHTINGS:
        raise ValueError(f"unknown loss {kind!r} with weighting {weighting!r}; known: {LOSS_KINDS}, {WEIGHTINGS}")
    if kind in ("vlb", "kl", "rescaled_kl"):
        vb = variational_bound(process, parametrisation, raw_output, x_0, x_t, step)
        return {"loss": vb * process.num_steps if kind == "rescaled_kl" else vb, "vb": vb}

    target, variance = parametrisation.split(raw_output.float(), x_0.shape[1])
    mse = _mean(torch.square(parametrisation.target_of(process, x_0, noise, step) - target))
    weight = 1.0 if weighting == "uniform" else snr_weight(process, parametrisation, step, x_0, weighting)
    if kind == "simple" or variance is None:
        return {"loss": weight * mse, "mse": mse}
    frozen = torch.cat([target.detach(), variance], dim=1)
    vb = variational_bound(process, parametrisation, frozen, x_0, x_t, step)
    scale = vb_weight * (1.0 if kind == "mse" else process.num_steps / 1000)
    return {"loss": weight * mse + scale * vb, "mse": mse, "vb": vb}


def snr_weight(
    process: Process, parametrisation: Parametrisation, step: Step, like: Tensor, weighting: Weighting
) -> Tensor:
    """Weight of the squared error by the signal-to-noise ratio, (B,) or (1,): that of x_0, divided by SNR for eps and
    by SNR + 1 for v (Hang et al. 2023)."""
    snr = process.at("snr", step, like).flatten()
    per_target = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}
    lowest = 1.0 if weighting == "clamped_snr" else 0.0
    return snr.clamp(lowest, _GAMMA) / per_target[parametrisation.target]


def variational_bound(
    process: Process,
    parametrisation: Parametrisation,
    raw_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    step: Step,
    clip: bool | float = False,
) -> Tensor:
    """The term of the variational bound at `step`, in bits per dimension: the divergence of the predicted from the true
    posterior or, at step 0, the negative log likelihood of 8-bit data (Ho et al. 2020, eq. 5 and 13). Training leaves
    the predicted x_0 unclipped, evaluation clips it."""
    x_0, x_t = x_0.float(), x_t.float()
    p: Prediction = parametrisation.predict(process, raw_output, x_t, step, clip)
    mean = process.posterior_mean(p.x_0, x_t, step)
    true_mean = process.posterior_mean(x_0, x_t, step)
    true_log_variance = process.at("posterior_log_variance", step, x_t)
    divergence = gaussian_kl(true_mean, true_log_variance, mean, p.log_variance)
    decoding = -discretised_log_likelihood(x_0, mean, 0.5 * p.log_variance)
    first = torch.as_tensor(step, device=x_0.device) == 0
    return torch.where(first, _mean(decoding), _mean(divergence)) / math.log(2)


def prior_bits(process: Process, x_0: Tensor) -> Tensor:
    """The bound's last term, the divergence of q(x_T | x_0) from a standard normal, in bits per dimension."""
    last = process.num_steps - 1
    zero = torch.zeros_like(x_0)
    mean = process.at("sqrt_alpha_bar", last, x_0) * x_0
    return _mean(gaussian_kl(mean, process.at("log_one_minus_alpha_bar", last, x_0), zero, zero)) / math.log(2)


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) of diagonal Gaussians, per dimension, in nats."""
    ratio = log_variance_q - log_variance_p
    return 0.5 * (-1 - ratio + torch.exp(ratio) + torch.square(mean_q - mean_p) * torch.exp(-log_variance_p))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, per dimension in nats, that a Gaussian falls into the bin of x, one of 256 in [-1, 1]; the
    outer bins are open (Ho et al. 2020, eq. 13)."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    above = _normal_cdf(inverse * (centred + 1 / 255))
    below = _normal_cdf(inverse * (centred - 1 / 255))
    bin_mass = torch.where(x > 0.999, 1 - below, torch.where(x < -0.999, above, above - below))
    return bin_mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that every published bound of this family was computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Tensor) -> Tensor:
    """(B, …) → (B,)"""
    return x.flatten(1).mean(1)
