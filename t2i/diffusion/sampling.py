"""One way to ask any stage for samples: how many steps, by which sampler, how strongly guided, and what else steers it.

B batch · C channels
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from t2i.core.types import Condition, Denoiser, NoiseSource, StepCallback
from t2i.diffusion.guidance import ClassifierFree, score_guided
from t2i.diffusion.inpaint import noised_start
from t2i.diffusion.prediction import Model, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS

_LINEAR_END = 4e-5  # just below alpha_bar at the last of DDPM's 1000 steps


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


@dataclass(frozen=True)
class Steering:
    """What changes a run beside its condition: nothing, unless given.

    Args:
        clip: bound of x_0 at every step, see `Parametrisation.predict`.
        processed: changes x_0 before that, such as `inpaint.keep_known`.
        gradient: (x_t (B, C, …), t (B,)) → ∇ log p(y | x_t) of a classifier or of CLIP, see `score_guided`; it moves
            x_0 after both, but for steps of "ddim" with more noise than the papers' linear schedule ends with; there,
            unless the network predicts the noise as theirs do, x_0 is clamped again.
        gradient_scale: factor of it.
        last: the network of the last step, where that is another one.
        wrap: (denoise, process) → a denoiser around all that, such as `inpaint.replaced`.
        start: (B, C, …) data to begin from instead of noise, see `inpaint.noised_start`.
        strength: 0…1, the share of the steps that `start` goes through.
    """

    clip: bool | float = True
    processed: Callable[[Tensor], Tensor] | None = None
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    gradient_scale: float = 1.0
    last: Model | None = None
    wrap: Callable[[Denoiser, Process], Denoiser] | None = None
    start: Tensor | None = None
    strength: float = 1.0

    def around(self, denoise: ClassifierFree, process: Process, sampler: str) -> Denoiser:
        """A denoiser steered by `gradient`, in the form of the sampler, and by `wrap`; `last` takes its last step."""
        steered: Denoiser = denoise
        if self.last is not None:
            steered = _until(denoise, replace(denoise, model=self.last))
        if self.gradient is not None:
            form: Literal["ddpm", "ddim"] = "ddpm" if sampler == "ddpm" else "ddim"
            begin = 0.0 if form == "ddpm" else _LINEAR_END
            clip = form == "ddim" and denoise.parametrisation.target != "eps" and self.clip
            steered = score_guided(steered, self.gradient, self.gradient_scale, process, form, begin, clip)
        return steered if self.wrap is None else self.wrap(steered, process)


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
    steering: Steering = Steering(),
    callback: StepCallback | None = None,
) -> Tensor:
    """Run a sampler from standard normal x_T (B, C, …) to x_0, with guidance where `sampling` asks for it.

    Args:
        process: the whole training process; it is respaced here.
        noise: where the samplers that draw fresh noise take it from.
        steering: what else there is to say; where it has a `start`, x_T is the noise added to that.
    """
    if sampling.guidance != 1 and null is None:
        raise ValueError(f"guidance {sampling.guidance} needs an unconditional condition")
    process, x_t = process.respace(sampling.steps), x_T * sampling.temperature
    if steering.start is not None:
        x_t, left = noised_start(process, steering.start, steering.strength, x_t)
        if left is None:
            return x_t
        process = left
    denoise = ClassifierFree(
        model,
        condition,
        null,
        process,
        parametrisation,
        sampling.guidance,
        clip=steering.clip,
        processed=steering.processed,
        interval=sampling.interval,
        rescale=sampling.rescale,
    )
    sampler: Callable[..., Tensor] = SAMPLERS[sampling.sampler]
    extra = {"eta": sampling.eta} if sampling.sampler == "ddim" else {}
    steered = steering.around(denoise, process, sampling.sampler)
    return sampler(steered, x_t, process, noise=noise, callback=callback, **extra)


def _until(denoise: Denoiser, last: Denoiser) -> Denoiser:
    """A denoiser whose step 0 is another one's."""
    return lambda x_t, step: (denoise if step > 0 else last)(x_t, step)
