"""The forward process and its posterior: every table that training and sampling look up.

B batch · T steps. `step` counts the steps of *this* process from 0 (nearly clean): an int while sampling, a (B,)
tensor while training. The network sees `timesteps[step]`, the position in the process it was trained on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from t2i.diffusion.schedules import SCHEDULES, respaced_steps

Step = int | Tensor


class Process:
    """A Gaussian diffusion over T steps (Ho et al. 2020), or a subset of the steps of a longer one.

    Tables are float64, in `tables`, and are cast to float32 when they are looked up.

    Args:
        betas: (T,) in (0, 1], cast to float64.
        timesteps: for a subset, the T increasing positions in the original process; 0…T-1 if left out.
        original_num_steps: length of the original process; T if left out.
        rescale_timesteps: show the network t · 1000 / original_num_steps as a float (IDDPM) instead of t.

    Raises ValueError for betas out of range or positions that do not fit.
    """

    def __init__(
        self,
        betas: Tensor,
        timesteps: Sequence[int] | None = None,
        original_num_steps: int | None = None,
        rescale_timesteps: bool = False,
    ) -> None:
        self.betas = betas.detach().double().cpu()
        self.num_steps = len(self.betas)
        self.original_num_steps = original_num_steps or self.num_steps
        self.positions = tuple(range(self.num_steps)) if timesteps is None else tuple(timesteps)
        self.rescale_timesteps = rescale_timesteps
        if self.betas.ndim != 1 or self.num_steps < 1 or not bool(((self.betas > 0) & (self.betas <= 1)).all()):
            raise ValueError(f"betas must be one row of numbers in (0, 1], got shape {tuple(self.betas.shape)}")
        if len(self.positions) != self.num_steps or max(self.positions) >= self.original_num_steps:
            raise ValueError(
                f"{len(self.positions)} timesteps up to {max(self.positions)} do not fit {self.num_steps} betas "
                f"of a process of {self.original_num_steps} steps"
            )
        self.tables = _tables(self.betas)
        self._rows = {name: row for row, name in enumerate(self.tables)}
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_schedule(cls, name: str, num_steps: int = 1000, rescale_timesteps: bool = False) -> "Process":
        """The full process of a named schedule, "linear" or "cosine"."""
        if name not in SCHEDULES:
            raise ValueError(f"unknown schedule {name!r}; known: {sorted(SCHEDULES)}")
        return cls(SCHEDULES[name](num_steps), rescale_timesteps=rescale_timesteps)

    def respace(self, spec: str | int | Sequence[int], *, lag: int = 0) -> "Process":
        """The process over the steps that `spec` keeps (see `respaced_steps`): the same alpha_bar at each of them, new
        betas between them (Nichol & Dhariwal 2021, section 4, eq. 19), and the network's timesteps unchanged.

        With a `lag` of 1 alpha_bar is that of one step before, as DALLE2-pytorch's updates read it; step 0 has none.
        """
        kept = respaced_steps(spec, self.num_steps)
        alpha_bar = self.tables["alpha_bar_prev" if lag else "alpha_bar"][kept]
        betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        return Process(betas, [self.positions[i] for i in kept], self.original_num_steps, self.rescale_timesteps)

    def first(self, num_steps: int) -> "Process":
        """The process over the `num_steps` steps nearest to the data: what is left of a run that starts half-way.
        Raises ValueError if it has fewer."""
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(f"cannot take the first {num_steps} of {self.num_steps} steps")
        betas, kept = self.betas[:num_steps], self.positions[:num_steps]
        return Process(betas, kept, self.original_num_steps, self.rescale_timesteps)

    @property
    def timesteps(self) -> Tensor:
        """(T,) what the network sees at each step: int64 positions, or float32 when rescaled to 0…1000."""
        positions = torch.tensor(self.positions)
        return (positions.double() * (1000 / self.original_num_steps)).float() if self.rescale_timesteps else positions

    def time(self, step: Step, like: Tensor) -> Tensor:
        """(B,) the network's timestep at `step`, for every sample of `like` (B, …), on its device."""
        times = self._cached(like.device)[1]
        return times[step.to(like.device)] if isinstance(step, Tensor) else times[step].expand(len(like))

    def at(self, table: str, step: Step, like: Tensor) -> Tensor:
        """Entries of a table, float32, on the device of `like` (B, …) and ready to be multiplied with it. Tables stay
        on the device after the first look-up, so this never waits for it."""
        row = self._cached(like.device)[0][self._rows[table]]
        entries = row[step.to(like.device)] if isinstance(step, Tensor) else row[step : step + 1]
        return entries.reshape(-1, *[1] * (like.ndim - 1))

    def _cached(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on_device:
            with torch.inference_mode(False):  # a first look-up while sampling must not spoil later training
                values = torch.stack(list(self.tables.values())).float()
                self._on_device[device] = values.to(device), self.timesteps.to(device)
        return self._on_device[device]

    def q_sample(self, x_0: Tensor, step: Step, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise, float32 (Ho et al. 2020, eq. 4)."""
        return (
            self.at("sqrt_alpha_bar", step, x_0) * x_0.float()
            + self.at("sqrt_one_minus_alpha_bar", step, x_0) * noise.float()
        )

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, step: Step) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return self.at("posterior_x_0", step, x_t) * x_0 + self.at("posterior_x_t", step, x_t) * x_t

    @property
    def snr(self) -> Tensor:
        """(T,) float64, alpha_bar / (1 - alpha_bar)."""
        return self.tables["snr"]


def _tables(betas: Tensor) -> dict[str, Tensor]:
    """All tables (T,) in float64. A chain of one step has no step 1 to take its clipped variance from: beta it is."""
    alpha_bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([betas.new_ones(1), alpha_bar[:-1]])
    posterior_variance = betas * (1 - before) / (1 - alpha_bar)  # eq. 7; 0 at step 0
    second = posterior_variance[1:2] if len(betas) > 1 else betas
    return {
        "alpha_bar": alpha_bar,
        "alpha_bar_prev": before,
        "alpha_bar_next": torch.cat([alpha_bar[1:], betas.new_zeros(1)]),
        "sqrt_alpha_bar": alpha_bar.sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        "log_one_minus_alpha_bar": torch.log1p(-alpha_bar),
        "sqrt_recip_alpha_bar": (1 / alpha_bar).sqrt(),
        "sqrt_recip_alpha_bar_minus_1": (1 / alpha_bar - 1).sqrt(),
        "snr": alpha_bar / (1 - alpha_bar),
        "posterior_x_0": betas * before.sqrt() / (1 - alpha_bar),
        "posterior_x_t": (1 - before) * (1 - betas).sqrt() / (1 - alpha_bar),
        "posterior_variance": posterior_variance,
        "posterior_log_variance": torch.cat([second, posterior_variance[1:]]).log(),
        "log_betas": betas.log(),
        "large_log_variance": torch.cat([second, betas[1:]]).log(),
    }
