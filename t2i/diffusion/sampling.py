"""One way to ask any stage for samples: how many steps, by which sampler, how strongly guided.

B batch · C channels
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from t2i.diffusion.guidance import ClassifierFree
from t2i.diffusion.prediction import Model, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS
from t2i.types import Condition, NoiseSource, StepCallback


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Args:
        steps: a respacing of the training process, such as 25, "ddim50", "fast27" or "10,10,3,2,2".
        sampler: "ddpm", "ddim" or "dpm_solver_pp_2m".
        guidance: classifier-free scale; out = null + guidance · (conditional - null).
        eta: DDIM's share of fresh noise.
        rescale: how far guidance keeps the contrast of the conditional prediction (Lin et al. 2023).
        interval: original timesteps that are guided, both included; None for all.
        temperature: factor of the initial noise; GLIDE's upsampler uses 0.997.
    """

    steps: str | int = 25
    sampler: str = "ddim"
    guidance: float = 1.0
    eta: float = 0.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1 or not 0 <= self.rescale <= 1 or self.guidance < 0 or self.temperature < 0:
            raise ValueError(f"eta and rescale lie in 0…1, guidance and temperature are not negative, got {self}")


def draw(
    model: Model,
    condition: Condition,
    null: Condition | None,
    process: Process,
    parametrisation: Parametrisation,
    sampling: Sampling,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    clip: bool | float = True,
    callback: StepCallback | None = None,
) -> Tensor:
    """Run a sampler from standard normal x_T (B, C, …) to x_0, with guidance where `sampling` asks for it.

    Args:
        process: the whole training process; it is respaced here.
        noise: where the samplers that draw fresh noise take it from.
        clip: bound of x_0 at every step, see `Parametrisation.predict`.
    """
    if sampling.guidance != 1 and null is None:
        raise ValueError(f"guidance {sampling.guidance} needs an unconditional condition")
    process = process.respace(sampling.steps)
    denoise = ClassifierFree(
        model,
        condition,
        null,
        process,
        parametrisation,
        sampling.guidance,
        clip=clip,
        interval=sampling.interval,
        rescale=sampling.rescale,
    )
    sampler: Callable[..., Tensor] = SAMPLERS[sampling.sampler]
    extra = {"eta": sampling.eta} if sampling.sampler == "ddim" else {}
    return sampler(denoise, x_T * sampling.temperature, process, noise=noise, callback=callback, **extra)
