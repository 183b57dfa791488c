"""Drawing a large picture from a small one.

B batch · h w pixels of the small picture · H W of the large one
"""

import torch
from torch import Tensor

from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling, Steering, draw
from t2i.seed import Streams
from t2i.stages.upsampler.model import Upsampler
from t2i.types import Condition, StepCallback


def process_of(model: Upsampler) -> Process:
    """The diffusion process an upsampler was trained on."""
    c = model.config
    return Process.from_schedule(c.schedule, c.num_steps, c.rescale_timesteps)


def quantised(model: Upsampler, low_res: Tensor) -> Tensor:
    """Small pictures in [-1, 1] as `model` takes them (see `UpsamplerConfig.levels`), float32."""
    if model.config.levels == "exact":
        return low_res.float()
    levels = (low_res.float() + 1) * 127.5
    levels = levels.round() if model.config.levels == "rounded" else (levels + 1e-3).floor()  # 3 may be 2.9999
    return levels.clamp(0, 255) / 127.5 - 1


@torch.no_grad()
def sample(
    model: Upsampler,
    condition: Condition,
    streams: Streams,
    sampling: Sampling,
    *,
    steering: Steering = Steering(),
    callback: StepCallback | None = None,
) -> Tensor:
    """Large pictures (B, 3, H, W) in [-1, 1] from `model.condition(quantised(model, low_res), …)`; `steering` as in the
    decoder."""
    assert condition.image is not None
    x_T = streams.normal(model.config.unet.in_channels, *condition.image.shape[-2:]).to(condition.image.device)
    return draw(
        model,
        model.project(condition),
        None,
        process_of(model),
        model.config.parametrisation,
        sampling,
        x_T.contiguous(memory_format=torch.channels_last),
        streams,
        steering=steering,
        callback=callback,
    )
