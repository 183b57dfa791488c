"""Drawing a large picture from a small one.

B batch · h w pixels of the small picture · H W of the large one
"""

import torch
from torch import Tensor

from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling, draw
from t2i.seed import Streams
from t2i.stages.upsampler.model import Upsampler
from t2i.types import StepCallback


def process_of(model: Upsampler) -> Process:
    """The diffusion process an upsampler was trained on."""
    c = model.config
    return Process.from_schedule(c.schedule, c.num_steps, c.rescale_timesteps)


def rounded(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as 8 bits hold them, float32."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


@torch.no_grad()
def sample(
    model: Upsampler,
    low_res: Tensor,
    streams: Streams,
    sampling: Sampling,
    *,
    tokens: Tensor | None = None,
    mask: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """(B, 3, h, w) in [-1, 1] → (B, 3, H, W); `tokens` and `mask` for upsamplers that read text.

    The small picture is rounded to 8 bits first, as it was in training and as GLIDE does.
    """
    low_res = rounded(low_res)
    condition = model.condition(low_res, tokens, mask)
    assert condition.image is not None
    x_T = streams.normal(model.config.unet.in_channels, *condition.image.shape[-2:]).to(low_res.device)
    return draw(
        model,
        model.project(condition),
        None,
        process_of(model),
        model.config.parametrisation,
        sampling,
        x_T.contiguous(memory_format=torch.channels_last),
        streams,
        callback=callback,
    )
