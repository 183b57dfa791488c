"""How many bits a diffusion model needs for a picture: the whole variational bound.

B batch · T steps of the process
"""

from typing import NamedTuple

import torch
from torch import Tensor

from t2i.core.types import Condition, NoiseSource
from t2i.diffusion.losses import prior_bits, variational_bound
from t2i.diffusion.prediction import Model, Parametrisation
from t2i.diffusion.process import Process


class Bits(NamedTuple):
    """Bits per dimension of each picture, on the CPU: `total` (B,) is the sum of `prior` (B,), the cost of x_T, and of
    `vb` (B, T), the terms by step. `eps_mse` and `x_0_mse` (B, T) are the mean squared errors at the same steps."""

    total: Tensor
    prior: Tensor
    vb: Tensor
    eps_mse: Tensor
    x_0_mse: Tensor


@torch.no_grad()
def bits_per_dim(
    model: Model,
    condition: Condition,
    process: Process,
    parametrisation: Parametrisation,
    x_0: Tensor,
    noise: NoiseSource,
    *,
    clamp: float | None = 1.0,
) -> Bits:
    """An upper bound of -log2 p(x_0) per dimension (Ho et al. 2020, eq. 5), from one noise per step.

    Args:
        process: the one the model was trained on or, with fewer terms and a looser bound, some of its steps.
        x_0: (B, C, …) data of 256 levels in [-1, 1].
        noise: drawn from once per step, the last step first.
        clamp: bound of the predicted x_0, as in sampling; training leaves it unbounded.
    """
    rows = []
    for step in reversed(range(process.num_steps)):
        eps = noise.normal(*x_0.shape[1:]).to(x_0.device)
        x_t = process.q_sample(x_0, step, eps)
        raw_output = model(x_t, process.time(step, x_t), condition)
        p = parametrisation.predict(process, raw_output, x_t, step, clamp)
        errors = ((guess - truth).square().flatten(1).mean(1) for guess, truth in ((p.eps, eps), (p.x_0, x_0)))
        bound = variational_bound(process, parametrisation, raw_output, x_0, x_t, step, clamp)
        rows.append(torch.stack([bound, *errors]))  # (3, B)
    vb, eps_mse, x_0_mse = torch.stack(rows[::-1], dim=2).cpu()  # (B, T) each
    prior = prior_bits(process, x_0).cpu()
    return Bits(vb.sum(dim=1) + prior, prior, vb, eps_mse, x_0_mse)
