"""Drawing pictures from latents in two evaluations.

B batch · C channels of latents · h w places of latents · H W pixels
"""

import torch
from torch import Tensor

from t2i.core.types import NoiseSource, StepCallback
from t2i.diffusion.consistency import few_steps
from t2i.stages.consistency_decoder.model import ConsistencyDecoder


@torch.no_grad()
def sample(
    model: ConsistencyDecoder,
    latents: Tensor,
    noise: NoiseSource,
    *,
    clamp: float | None = 1.0,
    callback: StepCallback | None = None,
) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] from latents (B, C, h, w), as OpenAI's consistency decoder draws them.

    Args:
        noise: one random stream per picture.
        clamp: bound of the picture after each evaluation; None for none, as diffusers has it.
        callback: after each.

    Raises UsageError as `ConsistencyDecoder.condition`.
    """
    condition, diffusion = model.condition(latents), model.config.diffusion
    assert condition.image is not None
    return few_steps(
        model.estimate,
        condition,
        diffusion.process(),
        diffusion.steps(),
        (model.config.unet.in_channels, *condition.image.shape[2:]),
        noise,
        clamp=clamp,
        device=condition.image.device,
        callback=callback,
    )
