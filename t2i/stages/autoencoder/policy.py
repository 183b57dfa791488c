"""The autoencoder in a chain and in a training.

B pictures of a batch
"""

from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.diffusion.sampling import Sampling
from t2i.stages.autoencoder.discriminator import SMALLEST
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig
from t2i.stages.stage import Example, How, Inputs, Neighbours


@torch.no_grad()
def draw(model: Autoencoder, inputs: Inputs, how: How) -> Tensor:
    """Pictures (B, 3, H, W) of latents; UsageError for latents of another number of channels."""
    assert inputs.latents is not None
    return model.decode_latents(inputs.latents).clamp(-1, 1)


def num_evaluations(config: AutoencoderConfig, sampling: Sampling) -> int:
    """One, whatever the steps."""
    return 1


def rows(config: AutoencoderConfig, max_batch: int, max_tile: int | None) -> int:
    """`max_batch`, or fewer where the network works on more than 64 × 64 places."""
    places = config.image_size // config.patch_size
    return max_batch * 64**2 // places**2


def example(model: Autoencoder) -> Example:
    """Latents become a picture in one step."""
    side = model.config.image_size // model.factor

    def step(_: None) -> None:
        model.decode_latents(torch.zeros(1, model.channels, side, side))

    return Example(lambda: None, step)


def fits(model: Autoencoder, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures whose sides are not folded evenly, or that a discriminator has no patch of."""
    if data.side % model.factor:
        raise UsageError(
            f"{data.side_key}={data.side} is not a multiple of {model.factor}, the pixels that share a place of the "
            "latents"
        )
    if options.adversarial and data.side < SMALLEST:
        raise UsageError(
            f"{data.side_key}={data.side}: task.adversarial={options.adversarial:g} needs {SMALLEST} pixels"
        )
