"""Drawing small pictures from an image embedding and a sentence, and the way back.

B batch · S side of a picture
"""

from dataclasses import replace

import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition, StepCallback
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.samplers import ddim_invert
from t2i.diffusion.sampling import Hooks, Sampling, draw
from t2i.stages.decoder.model import Decoder


@torch.no_grad()
def sample(
    model: Decoder,
    condition: Condition,
    streams: Streams,
    sampling: Sampling,
    *,
    null: Condition | None = None,
    hooks: Hooks = Hooks(),
    x_T: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] from `model.condition(…)`.

    Args:
        streams: one random stream per picture.
        null: what guidance moves away from; if None `model.null_condition(B)`, beside the picture that is known.
        hooks: classifiers, known parts, a picture to begin from; tensors of it on the model's device.
        x_T: (B, 3, S, S), the noise to begin from, such as `invert` finds; drawn from `streams` if None.
    """
    c = model.config
    if null is None and sampling.guidance != 1:
        null = replace(model.null_condition(len(streams)), image=condition.image)
    device = next(model.parameters()).device
    if x_T is None:
        x_T = streams.normal(c.unet.in_channels, c.image_size, c.image_size)  # (B, 3, S, S)
    return draw(
        model,
        c.diffusion,
        model.project(condition),
        model.project(null) if null is not None and sampling.guidance != 1 else None,
        sampling,
        x_T.to(device).contiguous(memory_format=torch.channels_last),
        streams,
        hooks=hooks,
        callback=callback,
    )


@torch.no_grad()
def invert(
    model: Decoder,
    condition: Condition,
    x_0: Tensor,
    steps: int | str,
    *,
    corrections: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """x_T (B, 3, S, S), from which DDIM with as many steps, eta 0 and no guidance comes back to the pictures x_0
    (B, 3, S, S) in [-1, 1], on the model's device; `corrections` as in `ddim_invert`."""
    diffusion = model.config.diffusion
    process = diffusion.process().respace(steps)
    denoise = ModelDenoiser(model, model.project(condition), process, diffusion.parametrisation(), clamp=None)
    x_0 = x_0.contiguous(memory_format=torch.channels_last)
    return ddim_invert(denoise, x_0, process, corrections=corrections, callback=callback)
