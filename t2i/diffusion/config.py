"""What a network was trained on, as data that is saved beside its weights: the noise, the target, the space."""

from functools import cache
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from t2i.core.config import Config, nested
from t2i.core.sizes import Steps
from t2i.diffusion.prediction import Parametrisation, Target, Variance
from t2i.diffusion.process import Process

Space = Literal["pixels", "latents", "vector"]


class Noise(Config):
    """The forward process alone, for networks that look at noised data and predict none of it."""

    schedule: Literal["linear", "cosine"] = Field("cosine", description="of the betas, see `t2i.diffusion.schedules`")
    num_steps: Steps = Field(1000, description="T")
    rescale_timesteps: bool = Field(False, description="show the network t · 1000 / T instead of t")

    def process(self) -> Process:
        """The whole process; the same object every time, with its tables."""
        return _process(self.schedule, self.num_steps, self.rescale_timesteps)

    @property
    def noise(self) -> "Noise":
        """The forward process alone: what two networks must share, one of which guides the other."""
        return Noise(schedule=self.schedule, num_steps=self.num_steps, rescale_timesteps=self.rescale_timesteps)


class Diffusion(Noise):
    """Everything that a diffusion network's output depends on beside its weights."""

    target: Target = Field("eps", description="what the network predicts: eps, x0 or v")
    variance: Variance | Literal["analytic"] = Field("learned_range", description="of a step back")
    space: Space = Field("pixels", description="of x_0: pixels in [-1, 1], latents of an autoencoder, or a vector")

    def parametrisation(self, x_0_variance: Tensor | None = None) -> Parametrisation:
        """What the network's output means; `x_0_variance` (T,) was measured where the variance is analytic."""
        return Parametrisation(self.target, self.variance, x_0_variance)

    def num_outputs(self, channels: int) -> int:
        """How many channels a network for data of `channels` channels puts out; ValueError for analytic variances,
        which are for vectors alone."""
        if self.variance == "analytic":
            raise ValueError("variance 'analytic' is measured of priors; a network of pictures learns or fixes its own")
        return self.parametrisation().num_outputs(channels)

    @property
    def clamp(self) -> float | None:
        """Bound of a predicted x_0: pixels have one, latents and vectors none."""
        return 1.0 if self.space == "pixels" else None


def diffusion_section(data: dict[str, Any]) -> dict[str, Any]:
    """A config of before 0.2, whose facts of diffusion stood among the others, in the form of today."""
    return nested(data, "diffusion", Diffusion.model_fields)


@cache
def _process(schedule: str, num_steps: int, rescale_timesteps: bool) -> Process:
    return Process.from_schedule(schedule, num_steps, rescale_timesteps)
