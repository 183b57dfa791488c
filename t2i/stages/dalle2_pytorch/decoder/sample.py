"""Drawing small pictures as DALLE2-pytorch does, and what it cannot do: the way back, and pictures to begin from.

B batch · S side of a picture
"""

from itertools import pairwise

import torch
from torch import Tensor

from t2i.core.types import Condition, NoiseSource, StepCallback
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddim_invert, ddpm
from t2i.diffusion.sampling import Sampling, Steering, draw
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder


def process_of(model: LaionDecoder) -> Process:
    """The diffusion process a decoder was trained on."""
    return Process.from_schedule(model.config.schedule, model.config.num_steps)


@torch.no_grad()
def sample(
    model: LaionDecoder,
    condition: Condition,
    null: Condition | None,
    streams: NoiseSource,
    sampling: Sampling,
    *,
    steering: Steering | None = None,
    x_T: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] from `model.condition(…)`.

    Args:
        null: what guidance moves away from, `model.null_condition(B)`; None without guidance.
        streams: one random stream per picture.
        sampling: sampler "ddpm" takes all steps of training, "ddim" a number of them, with noise (eta 1) in era C.
        steering: known parts, a picture to begin from; tensors of it on the model's device.
        x_T: (B, 3, S, S), the noise to begin from, such as `invert` finds. With one of these two the steps are those of
            `t2i.diffusion.sampling.draw`, as the reference's own do not lead back.
    """
    check(model, sampling)
    if sampling.guidance != 1 and null is None:
        raise ValueError(f"guidance {sampling.guidance} needs an unconditional condition")
    process, size, device = process_of(model), model.config.image_size, model.conv_out.weight.device
    theirs = x_T is None and steering is None
    x_T = (streams.normal(3, size, size) if x_T is None else x_T).to(device)
    if not theirs:
        return draw(
            model, condition, null, process, model.config.parametrisation, sampling, x_T, streams,
            steering=steering or Steering(), callback=callback,
        )  # fmt: skip

    def guided(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        out = model(x_t, t, condition)
        if null is None:
            return out
        without = model(x_t, t, null)
        return without + sampling.guidance * (out - without)  # the variance, too

    denoise = ModelDenoiser(guided, condition, process, model.config.parametrisation)
    if sampling.sampler == "ddpm":
        return ddpm(denoise, x_T, process, noise=streams, callback=callback)
    return _ddim(denoise, x_T, grid(process, sampling.steps), streams, callback, old=model.config.era == "C")


@torch.no_grad()
def invert(
    model: LaionDecoder,
    condition: Condition,
    x_0: Tensor,
    steps: int | str,
    *,
    corrections: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """As `t2i.stages.decoder.sample.invert`."""
    process = process_of(model).respace(steps)
    denoise = ModelDenoiser(model, condition, process, model.config.parametrisation, clip=False)
    return ddim_invert(denoise, x_0, process, corrections=corrections, callback=callback)


def _ddim(
    denoise: ModelDenoiser, x: Tensor, times: list[int], noise: NoiseSource, callback: StepCallback | None, *, old: bool
) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12 and 16) on a grid of its own, without the last times. The `old` one of era C has
    eta 1, reads alpha_bar one step before the network's time, and keeps eps as it was before x_0 was clamped."""
    process = denoise.process
    table = process.tables["alpha_bar_prev" if old else "alpha_bar"]
    for done, (time, after) in enumerate(pairwise(times), 1):
        raw = denoise.model(x, process.time(time, x), denoise.condition)
        p = denoise.parametrisation.predict(process, raw, x, time)
        p = p._replace(eps=raw[:, : x.shape[1]]) if old else p
        now, then = (table[i].item() for i in (time, after))
        sigma = ((1 - now / then) * (1 - then) / (1 - now)) ** 0.5 if old else 0.0
        x = then**0.5 * p.x_0 + (1 - then - sigma**2) ** 0.5 * p.eps
        if old and after > 0:
            x = x + sigma * noise.normal(*x.shape[1:]).to(x.device)
        if callback is not None:
            callback(done, len(times) - 1, x, p)
    return x


def check(model: LaionDecoder, sampling: Sampling) -> None:
    """ValueError for samplers that this decoder does not know, and for steps that they cannot take."""
    all_steps = model.config.num_steps
    if sampling.sampler not in ("ddpm", "ddim"):
        raise ValueError(f"this decoder is drawn from by its own ddpm or ddim, not by {sampling.sampler}")
    if sampling.sampler == "ddim":
        grid(process_of(model), sampling.steps)
    elif str(sampling.steps) != str(all_steps):
        raise ValueError(f"by ddpm this decoder takes all {all_steps} steps, got {sampling.steps}")


def grid(process: Process, steps: str | int) -> list[int]:
    """Times from noise to data, ends included."""
    if not isinstance(steps, int) and not steps.isdecimal():
        raise ValueError(f"this decoder takes a number of steps, got {steps!r}")
    if not 1 <= int(steps) < process.num_steps:
        raise ValueError(f"steps must lie in 1…{process.num_steps - 1}, got {steps}")
    return torch.linspace(0.0, process.num_steps, int(steps) + 2)[:-1].int().tolist()[::-1]
