"""Drawing small pictures as DALLE2-pytorch does, and what it cannot do: the way back, and pictures to begin from.

B batch · S side of a picture
"""

import torch
from torch import Tensor

from t2i.core.types import Condition, Denoiser, NoiseSource, Prediction, StepCallback
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.samplers import ddim, ddim_invert, ddpm
from t2i.diffusion.sampling import Hooks, Sampling, draw
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.grid import grid


@torch.no_grad()
def sample(
    model: LaionDecoder,
    condition: Condition,
    null: Condition | None,
    streams: NoiseSource,
    sampling: Sampling,
    *,
    hooks: Hooks | None = None,
    x_T: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] from `model.condition(…)`.

    Args:
        null: what guidance moves away from, `model.null_condition(B)`; None without guidance.
        streams: one random stream per picture.
        sampling: sampler "ddpm" takes all steps of training, "ddim" a number of them, with noise (eta 1) in era C.
        hooks: known parts, a picture to begin from; tensors of it on the model's device.
        x_T: (B, 3, S, S), the noise to begin from, such as `invert` finds. With one of these two the steps are those of
            `t2i.diffusion.sampling.draw`, as the reference's own do not lead back.
    """
    check(model.config, sampling)
    if sampling.guidance != 1 and null is None:
        raise ValueError(f"guidance {sampling.guidance} needs an unconditional condition")
    diffusion, size, device = model.config.diffusion, model.config.image_size, model.conv_out.weight.device
    theirs = x_T is None and hooks is None
    x_T = (streams.normal(3, size, size) if x_T is None else x_T).to(device)
    if not theirs:
        hooks = hooks if hooks is not None else Hooks()
        return draw(model, diffusion, condition, null, sampling, x_T, streams, hooks=hooks, callback=callback)

    def guided(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        out = model(x_t, t, condition)
        if null is None:
            return out
        without = model(x_t, t, null)
        return without + sampling.guidance * (out - without)  # the variance, too

    process, clamp = diffusion.process(), sampling.bound(diffusion.clamp)
    if sampling.sampler == "ddpm":
        denoise = ModelDenoiser(guided, condition, process, diffusion.parametrisation(), clamp)
        return ddpm(denoise, x_T, process, noise=streams, callback=callback)
    times = grid("decoder", sampling.steps, process.num_steps)
    if model.config.era == "C":  # eta 1, and alpha_bar of one step before the network's time
        kept = process.respace(times[1:])
        denoise = ModelDenoiser(guided, condition, kept, diffusion.parametrisation(), clamp)
        return ddim(
            _unclamped_eps(denoise), x_T, process.respace(times[1:], lag=1), eta=1.0, noise=streams, callback=callback
        )
    kept = process.respace(times)
    denoise = ModelDenoiser(guided, condition, kept, diffusion.parametrisation(), clamp)
    return ddim(denoise, x_T, kept, until=1, callback=callback)


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
    diffusion = model.config.diffusion
    process = diffusion.process().respace(steps)
    denoise = ModelDenoiser(model, condition, process, diffusion.parametrisation(), clamp=None)
    return ddim_invert(denoise, x_0, process, corrections=corrections, callback=callback)


def check(config: LaionDecoderConfig, sampling: Sampling) -> None:
    """ValueError for samplers that this decoder does not know, and for steps that they cannot take."""
    all_steps = config.diffusion.num_steps
    if sampling.sampler not in ("ddpm", "ddim"):
        raise ValueError(f"this decoder is drawn from by its own ddpm or ddim, not by {sampling.sampler}")
    if sampling.sampler == "ddim":
        grid("decoder", sampling.steps, all_steps)
    elif str(sampling.steps) != str(all_steps):
        raise ValueError(f"by ddpm this decoder takes all {all_steps} steps, got {sampling.steps}")


def _unclamped_eps(denoise: ModelDenoiser) -> Denoiser:
    """Era C keeps eps as it was before x_0 was clamped."""

    def kept(x_t: Tensor, step: int) -> Prediction:
        raw = denoise.model(x_t, denoise.process.time(step, x_t), denoise.condition)
        p = denoise.parametrisation.predict(denoise.process, raw, x_t, step, denoise.clamp)
        return p._replace(eps=raw[:, : x_t.shape[1]].float())

    return kept
