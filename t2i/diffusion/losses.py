"""What a diffusion network is trained on, per sample.

B batch. Every function returns (B,) float32: means over all dimensions of a sample; bounds are in bits per dimension.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Condition, Prediction
from t2i.diffusion.config import Diffusion
from t2i.diffusion.prediction import Model, Parametrisation
from t2i.diffusion.process import Process, Step
from t2i.diffusion.timesteps import LossSecondMoment, draw_steps

LossKind = Literal["simple", "hybrid", "mse", "rescaled_mse", "vlb", "kl", "rescaled_kl"]
Weighting = Literal["uniform", "min_snr", "clamped_snr"]
_GAMMA = 5.0  # Hang et al. 2023, section 3.4


class Objective(Config):
    """What is made smaller: the squared error of the target, mse; the term of the variational bound at a step, vb, in
    bits per dimension; or both.

    kind    "simple" mse (Ho et al. 2020, eq. 14);
            "hybrid", also "rescaled_mse": mse + vb · T / 1000, of T steps (Nichol & Dhariwal 2021, eq. 16);
            "mse": mse + vb, as ADM trains;
            "vlb", also "kl": vb;
            "rescaled_kl": vb · T, whose mean over steps is the whole bound.
    Where mse is present, vb trains the learned variance only; with a fixed variance it is left out.
    """

    kind: LossKind = Field("hybrid", description="of the loss: simple, hybrid, mse, vlb, rescaled_kl")
    weighting: Weighting = Field(
        "uniform",
        description="of mse, expressed for the target: min_snr weighs an error of x_0 by min(SNR, 5) (Hang et al. "
        "2023), clamped_snr never by less than 1, so that noisy steps, which compose the picture, keep their weight "
        "(the truncated SNR of Salimans & Ho 2022, section 4)",
    )
    vb_weight: float = Field(
        1.0,
        ge=0,
        description="of vb beside mse; a network that predicts x_0 has a vb so large at the last steps that it would "
        "drown mse in the gradient",
    )


def diffusion_loss(
    model: Model,
    diffusion: Diffusion,
    x_0: Tensor,
    condition: Condition | Callable[[Tensor], Condition],
    streams: Streams,
    objective: Objective = Objective(),
    *,
    time_shift: float = 1.0,
    num_draws: int = 1,
    memory: LossSecondMoment | None = None,
    also: Callable[[Prediction], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """What every diffusion stage is trained on: steps and noise are drawn, x_0 is noised, the network asked.

    Args:
        x_0: (B, C, …) data of the space that `diffusion` says.
        condition: of B rows, or what makes it of x_t.
        streams: one random stream per sample: first a step is drawn from each, then noise.
        time_shift, memory: which steps, see `draw_steps`.
        num_draws: steps and noises for every sample; of B · num_draws rows x_0 and condition must be, each sample's in
            a row, and the losses are their means.
        also: further numbers, from the unclamped prediction and without gradient.

    Returns named losses, each (B,) float32: see `training_losses`.
    """
    process, parametrisation = diffusion.process(), diffusion.parametrisation()
    if num_draws == 1:
        step = draw_steps(streams, process.num_steps, x_0.device, time_shift, memory)  # (B,)
        noise = upload(streams.normal(*x_0.shape[1:]), x_0.device)  # (B, C, …)
    else:
        assert memory is None and time_shift == 1, "steps of several draws are uniform"  # noqa: PT018
        step = upload(streams.integers(process.num_steps, num_draws).flatten(), x_0.device)  # (B·n,)
        noise = upload(streams.normal(num_draws, *x_0.shape[1:]).flatten(0, 1), x_0.device)
    x_t = process.q_sample(x_0, step, noise)
    raw_output = model(x_t, process.time(step, x_t), condition(x_t) if callable(condition) else condition)
    levels = diffusion.space == "pixels"
    losses = training_losses(
        process, parametrisation, raw_output, x_0, x_t, noise, step, objective=objective, levels=levels
    )
    if also is not None:
        with torch.no_grad():
            losses |= also(parametrisation.predict(process, raw_output, x_t, step, clamp=None))
    if not getattr(model, "training", True):
        losses |= by_level(losses["loss"], step, process.num_steps)
    if num_draws > 1:
        losses = {name: value.view(-1, num_draws).mean(dim=1) for name, value in losses.items()}
    return losses if memory is None else losses | {"loss": memory.weigh(step, losses["loss"])}


LEVEL = "_t"
"""What stands before the timesteps in the names of losses by noise level."""
_LEVELS = 4


def by_level(loss: Tensor, step: Tensor, num_steps: int) -> dict[str, Tensor]:
    """The part of a loss (B,) that falls on each quarter of the steps (B,), and how often it does: `loss_t0_249` and
    `share_t0_249`, whose means over samples `of_levels` divides."""
    found: dict[str, Tensor] = {}
    for steps in torch.arange(num_steps).tensor_split(_LEVELS):
        if len(steps):
            name, inside = f"{LEVEL}{steps[0]}_{steps[-1]}", ((step >= steps[0]) & (step <= steps[-1])).float()
            found |= {f"loss{name}": loss.detach() * inside, f"share{name}": inside}
    return found


def of_levels(means: dict[str, float]) -> dict[str, float]:
    """Means of losses, those by noise level divided by how often they were drawn; without those that never were."""
    shares = {name.removeprefix("share"): share for name, share in means.items() if name.startswith(f"share{LEVEL}")}
    found = {}
    for name, value in means.items():
        _, mark, steps = name.partition(LEVEL)
        share = shares.get(mark + steps) if mark else 1.0
        if not name.startswith(f"share{LEVEL}") and share != 0:
            found[name] = value / (share or 1.0)
    return found


def training_losses(
    process: Process,
    parametrisation: Parametrisation,
    raw_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    step: Step,
    *,
    objective: Objective = Objective(),
    levels: bool = True,
) -> dict[str, Tensor]:
    """Losses of one training step.

    Args:
        raw_output: the network's output at x_t = `process.q_sample(x_0, step, noise)`.
        step: (B,) steps of `process`.
        levels: see `variational_bound`.

    Returns "loss" and, where present, "mse" (before weighting) and "vb".
    """
    kind, weighting = objective.kind, objective.weighting
    if kind in ("vlb", "kl", "rescaled_kl"):
        vb = variational_bound(process, parametrisation, raw_output, x_0, x_t, step, levels=levels)
        return {"loss": vb * process.num_steps if kind == "rescaled_kl" else vb, "vb": vb}

    target, variance = parametrisation.split(raw_output.float(), x_0.shape[1])
    mse = _mean(torch.square(parametrisation.target_of(process, x_0, noise, step) - target))
    weight = 1.0 if weighting == "uniform" else snr_weight(process, parametrisation, step, x_0, weighting)
    if kind == "simple" or variance is None:
        return {"loss": weight * mse, "mse": mse}
    frozen = torch.cat([target.detach(), variance], dim=1)
    vb = variational_bound(process, parametrisation, frozen, x_0, x_t, step, levels=levels)
    scale = objective.vb_weight * (1.0 if kind == "mse" else process.num_steps / 1000)
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
    clamp: float | None = None,
    levels: bool = True,
) -> Tensor:
    """The term of the variational bound at `step`, in bits per dimension: the divergence of the predicted from the true
    posterior or, at step 0, the negative log likelihood of the data (Ho et al. 2020, eq. 5 and 13). Training leaves the
    predicted x_0 unbounded, evaluation clamps it. Without `levels` data are no pictures of 8 bits, and their likelihood
    is a density."""
    x_0, x_t = x_0.float(), x_t.float()
    p: Prediction = parametrisation.predict(process, raw_output, x_t, step, clamp)
    mean = process.posterior_mean(p.x_0, x_t, step)
    true_mean = process.posterior_mean(x_0, x_t, step)
    true_log_variance = process.at("posterior_log_variance", step, x_t)
    divergence = gaussian_kl(true_mean, true_log_variance, mean, p.log_variance)
    likelihood = discretised_log_likelihood if levels else gaussian_log_density
    decoding = -likelihood(x_0, mean, 0.5 * p.log_variance)
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


def gaussian_log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log density of a Gaussian at x, per dimension in nats: for latents and vectors, which have no levels."""
    return -0.5 * (math.log(2 * math.pi) + torch.square((x - mean) * torch.exp(-log_scale))) - log_scale


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that every published bound of this family was computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Tensor) -> Tensor:
    """(B, …) → (B,)."""
    return x.flatten(1).mean(1)
