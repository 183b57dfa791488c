"""One way to ask any stage for samples: how many steps, by which sampler, how strongly guided, and what hooks in.

B batch · C channels
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from t2i.core.types import Condition, Denoiser, NoiseSource, StepCallback
from t2i.diffusion.config import Diffusion
from t2i.diffusion.guidance import ClassifierFree, score_guided
from t2i.diffusion.inpaint import noised_start
from t2i.diffusion.prediction import Model
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import OPTIONS, SAMPLERS

_LINEAR_END = 4e-5  # just below alpha_bar at the last of DDPM's 1000 steps


@dataclass(frozen=True)
class Sampling:
    """How to sample; what is None or not given is as the network was trained.

    Args:
        steps: a respacing of the training process, such as 25, "ddim50", "fast27" or "10,10,3,2,2".
        sampler: "ddpm", "ddim" or "dpm_solver_pp_2m".
        guidance: classifier-free scale; out = null + guidance · (conditional - null).
        eta: DDIM's share of fresh noise.
        rescale: how far guidance keeps the contrast of the conditional prediction (Lin et al. 2023).
        interval: original timesteps that are guided, both included; None for all.
        temperature: factor of the initial noise; GLIDE's upsampler uses 0.997.
        clamp: bound of x_0 at every step; False for no bound.
        variance: of the steps of "ddpm", for networks that do not learn their own.
    """

    steps: str | int = 25
    sampler: str = "ddim"
    guidance: float = 1.0
    eta: float = 0.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    temperature: float = 1.0
    clamp: float | Literal[False] | None = None
    variance: Literal["fixed_small", "fixed_large", "analytic"] | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1 or not 0 <= self.rescale <= 1 or self.guidance < 0 or self.temperature < 0:
            raise ValueError(f"eta and rescale lie in 0…1, guidance and temperature are not negative, got {self}")
        if self.clamp is not None and self.clamp is not False and not self.clamp > 0:
            raise ValueError(f"clamp must be above 0, or false for no bound, got {self.clamp}")

    def bound(self, own: float | None) -> float | None:
        """Of x_0: the one chosen here, or else the network's `own`; None for no bound."""
        return own if self.clamp is None else self.clamp or None


@dataclass(frozen=True)
class Hooks:
    """What changes a run beside its condition: nothing, unless given.

    Args:
        processed: changes x_0 before it is clamped, such as `inpaint.keep_known`.
        gradient: (x_t (B, C, …), t (B,)) → ∇ log p(y | x_t) of a classifier or of CLIP, see `score_guided`. It moves
            x_0 after the clamp, and x_0 is not clamped again, but for networks that do not predict the noise under
            "ddim". There nothing is moved where there is more noise than the papers' linear schedule ends with.
        gradient_scale: factor of it.
        last: the network of the last step, where that is another one.
        wrap: (denoise, process) → a denoiser around all that, such as `inpaint.replaced`.
        start: (B, C, …) data to begin from instead of noise, see `inpaint.noised_start`.
        strength: 0…1, the share of the steps that `start` goes through.
    """

    processed: Callable[[Tensor], Tensor] | None = None
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    gradient_scale: float = 1.0
    last: Model | None = None
    wrap: Callable[[Denoiser, Process], Denoiser] | None = None
    start: Tensor | None = None
    strength: float = 1.0

    def around(self, denoise: ClassifierFree, process: Process, sampler: str) -> Denoiser:
        """A denoiser moved by `gradient`, in the form of the sampler, and by `wrap`; `last` takes its last step."""
        hooked: Denoiser = denoise
        if self.last is not None:
            hooked = _until(denoise, replace(denoise, model=self.last))
        if self.gradient is not None:
            form: Literal["ddpm", "ddim"] = "ddpm" if sampler == "ddpm" else "ddim"
            begin = 0.0 if form == "ddpm" else _LINEAR_END
            clamp = denoise.clamp if form == "ddim" and denoise.parametrisation.target != "eps" else None
            hooked = score_guided(hooked, self.gradient, self.gradient_scale, process, form, begin, clamp)
        return hooked if self.wrap is None else self.wrap(hooked, process)


def draw(
    model: Model,
    diffusion: Diffusion,
    condition: Condition,
    null: Condition | None,
    sampling: Sampling,
    x_T: Tensor,
    noise: NoiseSource,
    *,
    x_0_variance: Tensor | None = None,
    hooks: Hooks = Hooks(),
    callback: StepCallback | None = None,
) -> Tensor:
    """Run a sampler from standard normal x_T (B, C, …) to x_0, with guidance where `sampling` asks for it.

    Args:
        diffusion: what the network was trained on.
        noise: where the samplers that draw fresh noise take it from.
        x_0_variance: (T,), measured, for networks of analytic variance.
        hooks: what else there is to do; where they have a `start`, x_T is the noise added to that.
    """
    if sampling.guidance != 1 and null is None:
        raise ValueError(f"guidance {sampling.guidance} needs an unconditional condition")
    process, x_t = diffusion.process().respace(sampling.steps), x_T * sampling.temperature
    if hooks.start is not None:
        x_t, left = noised_start(process, hooks.start, hooks.strength, x_t)
        if left is None:
            return x_t
        process = left
    denoise = ClassifierFree(
        model,
        condition,
        null,
        process,
        diffusion.parametrisation(x_0_variance),
        sampling.guidance,
        clamp=sampling.bound(diffusion.clamp),
        processed=hooks.processed,
        interval=sampling.interval,
        rescale=sampling.rescale,
    )
    sampler: Callable[..., Tensor] = SAMPLERS[sampling.sampler]
    options = {name: getattr(sampling, name) for name in OPTIONS.get(sampling.sampler, ())}
    hooked = hooks.around(denoise, process, sampling.sampler)
    return sampler(hooked, x_t, process, noise=noise, callback=callback, **options)


def _until(denoise: Denoiser, last: Denoiser) -> Denoiser:
    """A denoiser whose step 0 is another one's."""
    return lambda x_t, step: (denoise if step > 0 else last)(x_t, step)
