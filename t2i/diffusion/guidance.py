"""Denoisers that steer: classifier-free guidance, and the gradient of a classifier or of CLIP.

B batch · C channels. Each is a `Denoiser`, so any sampler takes it in place of a plain `ModelDenoiser`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from t2i.core.types import Condition, Denoiser, Prediction
from t2i.diffusion.prediction import Model, Parametrisation, eps_from_x_0, x_0_from_eps
from t2i.diffusion.process import Process


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): the target becomes u + scale · (c - u), c and u being the
    network's outputs with and without condition. Learned variance channels stay those of the conditional output.

    Args:
        condition, null: B rows each, with the same ports; `null` may be None where scale is 1.
        scale: 1 is the conditional network alone, in one pass; 0 the unconditional one.
        clamp, processed: as in `Parametrisation.predict`, applied after guidance.
        interval: lowest and highest timestep of the original process that are guided, both included; outside of it one
            conditional pass is made (Kynkäänniemi et al. 2024). None guides everywhere.
        rescale: 0…1, how far the guided target's standard deviation is pulled to the conditional one's (Lin et al.
            2023, eq. 15 and 16).
        batch: "doubled" runs both rows in one batch, "split" in two passes of half the memory.

    Raises ValueError where these do not fit together.
    """

    model: Model
    condition: Condition
    null: Condition | None
    process: Process
    parametrisation: Parametrisation
    scale: float
    clamp: float | None = 1.0
    processed: Callable[[Tensor], Tensor] | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    batch: Literal["doubled", "split"] = "doubled"

    def __post_init__(self) -> None:
        if self.scale != 1 and self.null is None:
            raise ValueError(f"guidance with scale {self.scale} needs an unconditional condition, got null=None")
        if self.batch not in ("doubled", "split") or not 0 <= self.rescale <= 1:
            raise ValueError(
                f"batch must be 'doubled' or 'split' and rescale in 0…1, got {self.batch!r} and {self.rescale}"
            )
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"the guidance interval starts at {self.interval[0]}, after its end {self.interval[1]}")

    def __call__(self, x_t: Tensor, step: int) -> Prediction:
        t = self.process.time(step, x_t)
        raw_output = self._guided(x_t, t) if self.guides(step) else self.model(x_t, t, self.condition)
        return self.parametrisation.predict(self.process, raw_output, x_t, step, self.clamp, self.processed)

    def guides(self, step: int) -> bool:
        """Whether this step needs the unconditional network."""
        if self.scale == 1 or self.interval is None:
            return self.scale != 1
        return self.interval[0] <= self.process.positions[step] <= self.interval[1]

    @cached_property
    def _both(self) -> Condition:
        assert self.null is not None
        return Condition.cat([self.condition, self.null])

    def _guided(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.batch == "doubled":
            with_condition, without = self.model(torch.cat([x_t, x_t]), t.repeat(2), self._both).chunk(2)
        else:
            assert self.null is not None
            with_condition, without = self.model(x_t, t, self.condition), self.model(x_t, t, self.null)
        c, variance = self.parametrisation.split(with_condition.float(), x_t.shape[1])
        u, _ = self.parametrisation.split(without.float(), x_t.shape[1])
        guided = u + self.scale * (c - u)
        if self.rescale > 0:
            guided = self.rescale * guided * (_std(c) / _std(guided)) + (1 - self.rescale) * guided
        return guided if variance is None else torch.cat([guided, variance], dim=1)


def score_guided(
    denoise: Denoiser,
    grad_fn: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    process: Process,
    form: Literal["ddpm", "ddim"],
    begin: float = 0.0,
    clamp: float | None = None,
) -> Denoiser:
    """Guidance by g = scale · ∇ log p(y | x_t), from a classifier (Dhariwal & Nichol 2021) or CLIP (GLIDE).

    Args:
        grad_fn: (x_t (B, C, …), t (B,)) → the gradient, of x_t's shape; it turns gradients on for itself.
        form: "ddpm" shifts the mean of x_{t-1} by variance · g (algorithm 1), "ddim" shifts eps by
            -sqrt(1 - alpha_bar) · g (algorithm 2). Use the one of the sampler.
        begin: below this alpha_bar nothing is moved. "ddim" moves x_0 by (1 - alpha_bar) / sqrt(alpha_bar) · g, which
            knows no bound where the cosine schedule begins; and in pure noise there is nothing to see.
        clamp: bound of x_0 afterwards, see `Parametrisation.predict`; the papers do not.
    """
    if form not in ("ddpm", "ddim"):
        raise ValueError(f"unknown form of guidance {form!r}; known: 'ddpm', 'ddim'")

    def guided(x_t: Tensor, step: int) -> Prediction:
        p = denoise(x_t, step)
        alpha_bar = process.at("alpha_bar", step, x_t)
        gradient = scale * grad_fn(x_t, process.time(step, x_t)).float()
        if form == "ddpm":
            # the mean is posterior_x_0 · x_0 + posterior_x_t · x_t: this x_0 moves it by variance · g
            x_0 = p.x_0 + p.log_variance.exp() * gradient / process.at("posterior_x_0", step, x_t)
        else:
            x_0 = x_0_from_eps(process, x_t, p.eps - (1 - alpha_bar).sqrt() * gradient, step)
        if clamp is not None:
            x_0 = x_0.clamp(-clamp, clamp)
        x_0 = torch.where(alpha_bar < begin, p.x_0, x_0)
        return Prediction(x_0, eps_from_x_0(process, x_t, x_0, step), p.log_variance)

    return guided


def input_gradient(score: Callable[..., Tensor], x_t: Tensor, *others: Tensor) -> Tensor:
    """∇ Σ score(x_t, *others) at x_t, float32, of x_t's shape: also where gradients are off, and without autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x_t.device.type, enabled=False):
        x, *rest = (tensor.detach().clone() for tensor in (x_t.float(), *others))  # not those of an inference mode
        return torch.autograd.grad(score(x.requires_grad_(), *rest).sum(), x)[0]


def _std(x: Tensor) -> Tensor:
    """Standard deviation of each sample, (B, 1, …)."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
