"""From what a network puts out to what a sampler needs.

B batch · C channels. x_t, x_0 and noise are (B, C, …) of any rank: pictures (B, C, H, W) or embeddings (B, D).
A network predicts eps, x_0 or v, and perhaps the variance in as many channels again; all float32 in here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from t2i.core.types import Condition, Prediction
from t2i.diffusion import analytic
from t2i.diffusion.process import Process, Step

Target = Literal["eps", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Model = Callable[[Tensor, Tensor, Condition], Tensor]
"""`model(x_t, t, condition)`: x_t (B, C, …), t (B,) → (B, C or 2C, …)."""


@dataclass(frozen=True)
class Parametrisation:
    """What a network's output means.

    `target`: "eps" the noise (Ho et al. 2020), "x0" the clean data (DALL-E 2's prior) or "v" = sqrt(alpha_bar) eps -
    sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022). `variance`: the posterior's, beta, or "learned_range", a second half
    of channels that interpolates between the logarithms of both (Nichol & Dhariwal 2021, eq. 15), or "analytic", from
    the `x_0_variance` (T,) that was measured of a trained network (see `t2i.diffusion.analytic`).
    """

    target: Target = "eps"
    variance: Variance | Literal["analytic"] = "learned_range"
    x_0_variance: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.target not in ("eps", "x0", "v"):
            raise ValueError(f"unknown target {self.target!r}; known: 'eps', 'x0', 'v'")
        if self.variance not in ("fixed_small", "fixed_large", "learned_range", "analytic"):
            raise ValueError(
                f"unknown variance {self.variance!r}; known: 'fixed_small', 'fixed_large', 'learned_range', 'analytic'"
            )
        if (self.x_0_variance is None) == (self.variance == "analytic"):
            given = "missing" if self.x_0_variance is None else "given"
            raise ValueError(f"a measured x_0_variance is {given}, but variance={self.variance!r}")

    def num_outputs(self, channels: int) -> int:
        """How many channels a network for data of `channels` channels puts out."""
        return channels * (2 if self.variance == "learned_range" else 1)

    def split(self, raw_output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """The target half and, if the variance is learned, the variance half of an output. Raises ValueError if the
        output has another number of channels than `num_outputs(channels)`."""
        if raw_output.shape[1] != self.num_outputs(channels):
            raise ValueError(
                f"the network puts out {raw_output.shape[1]} channels; {self.target} with {self.variance} variance of "
                f"{channels} channels needs {self.num_outputs(channels)}"
            )
        if self.variance != "learned_range":
            return raw_output, None
        target, variance = raw_output.chunk(2, dim=1)
        return target, variance

    def target_of(self, process: Process, x_0: Tensor, noise: Tensor, step: Step) -> Tensor:
        """What the network should predict for x_t = `process.q_sample(x_0, step, noise)`."""
        if self.target == "x0":
            return x_0.float()
        if self.target == "eps":
            return noise.float()
        signal, sigma = process.at("sqrt_alpha_bar", step, x_0), process.at("sqrt_one_minus_alpha_bar", step, x_0)
        return signal * noise.float() - sigma * x_0.float()

    def predict(
        self,
        process: Process,
        raw_output: Tensor,
        x_t: Tensor,
        step: Step,
        clamp: float | None = 1.0,
        processed: Callable[[Tensor], Tensor] | None = None,
    ) -> Prediction:
        """Read a network's output at x_t.

        Args:
            raw_output: (B, num_outputs(C), …).
            clamp: bound of x_0, ± that number; None for no bound.
            processed: changes x_0 before it is clamped.

        Returns x_0 after both, eps derived again from that x_0 and x_t, and the log variance of p(x_{t-1} | x_t).
        """
        x_t = x_t.float()
        target, variance = self.split(raw_output.float(), x_t.shape[1])
        if self.target == "eps":
            x_0 = x_0_from_eps(process, x_t, target, step)
        elif self.target == "v":
            signal, sigma = process.at("sqrt_alpha_bar", step, x_t), process.at("sqrt_one_minus_alpha_bar", step, x_t)
            x_0 = signal * x_t - sigma * target
        else:
            x_0 = target
        if processed is not None:
            x_0 = processed(x_0)
        if clamp is not None:
            x_0 = x_0.clamp(-clamp, clamp)
        return Prediction(x_0, eps_from_x_0(process, x_t, x_0, step), self.log_variance(process, variance, x_t, step))

    def log_variance(self, process: Process, variance: Tensor | None, x_t: Tensor, step: Step) -> Tensor:
        """Log variance of p(x_{t-1} | x_t), broadcastable to x_t; `variance` are the learned channels, -1…1, if any."""
        if self.variance == "fixed_large":
            return process.at("large_log_variance", step, x_t)
        if self.x_0_variance is not None:
            return analytic.log_variance(process, self.x_0_variance, x_t, step)
        small = process.at("posterior_log_variance", step, x_t)
        if variance is None:
            return small
        share = (variance + 1) / 2  # not clamped: a network may leave the range
        return share * process.at("log_betas", step, x_t) + (1 - share) * small


def x_0_from_eps(process: Process, x_t: Tensor, eps: Tensor, step: Step) -> Tensor:
    """Solve x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps for x_0."""
    recip = process.at("sqrt_recip_alpha_bar", step, x_t)
    return recip * x_t - process.at("sqrt_recip_alpha_bar_minus_1", step, x_t) * eps


def eps_from_x_0(process: Process, x_t: Tensor, x_0: Tensor, step: Step) -> Tensor:
    """Solve the same equation for eps."""
    recip = process.at("sqrt_recip_alpha_bar", step, x_t)
    return (recip * x_t - x_0) / process.at("sqrt_recip_alpha_bar_minus_1", step, x_t)


@dataclass(frozen=True)
class ModelDenoiser:
    """A model and its condition as a `Denoiser`: `denoise(x_t, step)` → `Prediction`. `clamp` and `processed` as in
    `Parametrisation.predict`."""

    model: Model
    condition: Condition
    process: Process
    parametrisation: Parametrisation
    clamp: float | None = 1.0
    processed: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x_t: Tensor, step: int) -> Prediction:
        raw_output = self.model(x_t, self.process.time(step, x_t), self.condition)
        return self.parametrisation.predict(self.process, raw_output, x_t, step, self.clamp, self.processed)
