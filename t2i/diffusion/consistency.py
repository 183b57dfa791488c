"""Consistency models on a variance-preserving process: scalings, sampling in a few steps, and what they learn from.

Song et al. 2023 (arXiv 2303.01469), in the form of OpenAI's consistency decoder: the network's own output F becomes an
estimate of the clean data, f(x_t, t) = c_skip x_t + c_out F(c_in x_t, t). With sigma = sqrt(1 / alpha_bar - 1):

    c_in   = alpha_bar^-½ / sqrt(sigma² + sigma_data²)
    c_skip = alpha_bar^-½ · sigma_data² / (sigma² + sigma_data²)
    c_out  = sigma · sigma_data / sqrt(sigma² + sigma_data²)

so that f(x_0, 0) = x_0 and F has about unit variance, as in EDM (Karras et al. 2022, table 1).

B batch · C channels · T steps · K points of the grid that a network is distilled on
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.sizes import Steps
from t2i.core.types import Condition, NoiseSource, Prediction, StepCallback
from t2i.diffusion.config import Noise
from t2i.diffusion.prediction import Model, eps_from_x_0
from t2i.diffusion.process import Process, Step
from t2i.diffusion.timesteps import shifted


class Estimate(Protocol):
    """`estimate(x_t, step, condition)`: what x_0 (B, C, …) is, seen from x_t (B, C, …) at a step of the process."""

    def __call__(self, x_t: Tensor, step: Step, condition: Condition) -> Tensor: ...


class Consistency(Noise):
    """What a consistency model was trained on; the defaults are those of OpenAI's consistency decoder."""

    num_steps: Steps = Field(1024, description="T")
    sigma_data: float = Field(0.5, gt=0, le=1e3, description="standard deviation of the data, in the scalings")
    num_points: int = Field(64, ge=2, le=10**5, description="of the grid T/64, 2T/64 … that it is distilled on")
    drawn_at: tuple[float, ...] = Field(
        (1.0, 0.5), min_length=1, max_length=64, description="times that it is evaluated at to draw, as parts of T"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_steps % self.num_points:
            raise ValueError(f"num_steps={self.num_steps} is not a multiple of num_points={self.num_points}")
        if bad := [part for part in self.drawn_at if not 0 <= part <= 1]:
            raise ValueError(f"drawn_at are parts of the process in 0…1, got {bad[0]}")
        return self

    def steps(self) -> list[int]:
        """Steps of the process that pictures are drawn at, the noisiest first."""
        return [self.rounded(int((self.num_steps - 1) * part)) for part in self.drawn_at]

    def rounded(self, step: int) -> int:
        """The next step of the grid above, or its last: 1023 → 1008 and 511 → 512, of 64 points of 1024 steps."""
        stride = self.num_steps // self.num_points
        return min((step // stride + 1) * stride, self.num_steps - stride)

    def grid(self, num: int) -> list[int]:
        """`num` or fewer steps of the grid, evenly spread and increasing, the last one of them among them."""
        wanted = (round(self.num_steps * k / num) - 1 for k in range(1, num + 1))
        return sorted({self.rounded(step) for step in wanted})


class Scalings(NamedTuple):
    """Factors at a step, broadcastable to x_t, float32."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor


def scalings(process: Process, step: Step, like: Tensor, sigma_data: float = 0.5) -> Scalings:
    """The scalings at a step of `process`, ready to be multiplied with `like` (B, C, …)."""
    recip, sigma = (process.at(f"sqrt_recip_alpha_bar{name}", step, like) for name in ("", "_minus_1"))
    total = sigma.square() + sigma_data**2
    return Scalings(recip / total.sqrt(), recip * sigma_data**2 / total, sigma * sigma_data / total.sqrt())


@dataclass(frozen=True)
class Scaled:
    """A network as an `Estimate`: f = c_skip x_t + c_out F(c_in x_t, t); of its output the first C channels are F."""

    model: Model
    process: Process
    sigma_data: float = 0.5

    def __call__(self, x_t: Tensor, step: Step, condition: Condition) -> Tensor:
        c_in, c_skip, c_out = scalings(self.process, step, x_t, self.sigma_data)
        return c_skip * x_t + c_out * self.output(c_in * x_t, step, condition)

    def output(self, scaled: Tensor, step: Step, condition: Condition) -> Tensor:
        """F of c_in x_t, (B, C, …) float32."""
        return self.model(scaled, self.process.time(step, scaled), condition)[:, : scaled.shape[1]].float()


def few_steps(
    estimate: Estimate,
    condition: Condition,
    process: Process,
    steps: Sequence[int],
    shape: tuple[int, ...],
    noise: NoiseSource,
    *,
    clamp: float | None = 1.0,
    device: torch.device | str = "cpu",
    callback: StepCallback | None = None,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): noise what is there, estimate, again.

    Args:
        steps: of `process`, the noisiest first; as many evaluations.
        shape: (C, …) of one sample.
        noise: drawn from anew at every step.
        clamp: bound of every estimate; None for no bound.

    Returns x_0 (B, C, …), which is 0 before the first step.
    """
    x_0 = torch.zeros((), device=device)
    for done, step in enumerate(steps, 1):
        eps = upload(noise.normal(*shape), device)  # (B, C, …)
        x_t = process.q_sample(x_0.expand_as(eps), step, eps)
        x_0 = estimate(x_t, step, condition)
        x_0 = x_0 if clamp is None else x_0.clamp(-clamp, clamp)
        if callback is not None:
            log_variance = process.at("posterior_log_variance", step, x_t)
            callback(done, len(steps), x_t, Prediction(x_0, eps_from_x_0(process, x_t, x_0, step), log_variance))
    return x_0


def denoising_loss(
    estimate: Scaled, x_0: Tensor, condition: Condition, streams: Streams, *, time_shift: float = 1.0
) -> dict[str, Tensor]:
    """What a teacher learns: F = (x_0 - c_skip x_t) / c_out at random steps (Karras et al. 2022, eq. 8).

    Args:
        x_0: (B, C, …).
        streams: a step is drawn from each, then noise.
        time_shift: see `shifted`.

    Returns `loss`, the squared error of F, and `mse`, that of x_0; each (B,) float32.
    """
    process, num_steps = estimate.process, estimate.process.num_steps
    step = upload(shifted(streams.integers(num_steps), num_steps, time_shift), x_0.device)  # (B,)
    x_t = process.q_sample(x_0, step, upload(streams.normal(*x_0.shape[1:]), x_0.device))
    c_in, c_skip, c_out = scalings(process, step, x_t, estimate.sigma_data)
    error = estimate.output(c_in * x_t, step, condition) - (x_0.float() - c_skip * x_t) / c_out
    return {"loss": error.square().flatten(1).mean(1), "mse": (c_out * error.detach()).square().flatten(1).mean(1)}


class Distillation(Config):
    """How a network learns to be consistent."""

    num_points: Steps = Field(32, description="points of the grid; 8 to 40 make little difference")
    last: float = Field(0.2, ge=0, le=1, description="how often the noisiest point is taken, beside its even share")
    target_decay: float = Field(
        0.95, ge=0, lt=1, description="of the average of the network that is its target; 0 diverges"
    )
    max_weight: float = Field(25.0, ge=1, description="bound of the weight (sigma² + sigma_data²) / sigma²; 1 for none")
    huber: float = Field(0.00054, gt=0, description="c of the pseudo-Huber distance, over √dimension")


def consistency_loss(
    student: Estimate,
    target: Estimate,
    teacher: Estimate | None,
    process: Process,
    grid: Sequence[int],
    x_0: Tensor,
    condition: Condition,
    streams: Streams,
    how: Distillation = Distillation(),
    *,
    sigma_data: float = 0.5,
) -> dict[str, Tensor]:
    """Consistency distillation, or consistency training where there is no teacher (Song et al. 2023, algorithms 2, 3).

    The student at a point of the grid must say what its average says one point nearer to the data, where one step of
    the teacher's DDIM leads; at the first point, what the teacher itself says. Without a teacher x_0 stands for what it
    would say. The distance is pseudo-Huber (Song & Dhariwal 2023, eq. 8).

    Args:
        student, target: the network, and the average of it; only the student has a gradient.
        teacher: frozen, guided where the student shall be.
        grid: K increasing steps of `process`.
        x_0: (B, C, …) in [-1, 1].
        streams: a point is drawn from each, then noise.

    Returns `loss`, and `distance`, the root mean square of the difference; each (B,) float32.
    """
    u, last = streams.uniform(2).unbind(1)  # (B,) each
    k = torch.where(last < how.last, len(grid) - 1, (u * len(grid)).long())  # (B,), of 0 … K-1
    before = torch.tensor([grid[0], *grid[:-1]])  # of the first point: anything
    steps = torch.stack([torch.tensor(grid)[k], before[k], k], dim=1)  # (B, 3)
    step, nearer, k = upload(steps, x_0.device).unbind(1)
    noise = upload(streams.normal(*x_0.shape[1:]), x_0.device)
    x_t = process.q_sample(x_0, step, noise)
    with torch.no_grad():
        seen = x_0.float() if teacher is None else teacher(x_t, step, condition).clamp(-1, 1)
        x_r = process.q_sample(seen, nearer, eps_from_x_0(process, x_t, seen, step))  # a step of DDIM
        first = (k == 0).reshape(-1, *[1] * (x_0.ndim - 1))
        wanted = torch.where(first, seen, target(x_r, nearer, condition))
    square = (student(x_t, step, condition) - wanted).square().flatten(1).sum(1)  # (B,)
    h = how.huber * (x_0[0].numel() ** 0.5)
    snr = process.at("snr", step, x_0).flatten()  # 1 / sigma²
    weight = (1 + sigma_data**2 * snr).clamp(1, how.max_weight)
    distance = (square.detach() / x_0[0].numel()).sqrt()
    return {"loss": weight * ((square + h**2).sqrt() - h), "distance": distance}
