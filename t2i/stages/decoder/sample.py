"""Drawing small pictures from an image embedding and a sentence.

B batch · L tokens · D width of CLIP embeddings
"""

import torch
from torch import Tensor

from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling, Steering, draw
from t2i.seed import Streams
from t2i.stages.decoder.model import Decoder
from t2i.types import Condition, StepCallback


def process_of(model: Decoder) -> Process:
    """The diffusion process a decoder was trained on."""
    c = model.config
    return Process.from_schedule(c.schedule, c.num_steps, c.rescale_timesteps)


@torch.no_grad()
def sample(
    model: Decoder,
    condition: Condition,
    streams: Streams,
    sampling: Sampling,
    *,
    null: Condition | None = None,
    steering: Steering = Steering(),
    callback: StepCallback | None = None,
) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] from `model.condition(…)`.

    Args:
        streams: one random stream per picture.
        null: what guidance moves away from; `model.null_condition(B)` if None.
        steering: classifiers, known parts, a picture to begin from; tensors of it on the model's device.
    """
    c = model.config
    if null is None and sampling.guidance != 1:
        null = model.null_condition(len(streams))
    device = next(model.parameters()).device
    x_T = streams.normal(c.unet.in_channels, c.image_size, c.image_size).to(device)  # (B, 3, S, S)
    return draw(
        model,
        model.project(condition),
        model.project(null) if null is not None and sampling.guidance != 1 else None,
        process_of(model),
        c.parametrisation,
        sampling,
        x_T.contiguous(memory_format=torch.channels_last),
        streams,
        steering=steering,
        callback=callback,
    )
