"""The consistency decoder in a chain and in a training."""

from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.types import Condition
from t2i.data.config import DataConfig
from t2i.diffusion.sampling import Sampling
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig
from t2i.stages.consistency_decoder.sample import sample
from t2i.stages.follow import follow, same_neighbour
from t2i.stages.stage import Example, How, Inputs, Neighbours


def draw(model: ConsistencyDecoder, inputs: Inputs, how: How) -> Tensor:
    """Pictures (B, 3, H, W) of latents; nothing of the sampling counts."""
    assert inputs.latents is not None
    return sample(model, inputs.latents, how.streams, callback=how.callback)


def num_evaluations(config: ConsistencyDecoderConfig, sampling: Sampling) -> int:
    """Two, unless the config says otherwise."""
    return len(config.diffusion.drawn_at)


def rows(config: ConsistencyDecoderConfig, max_batch: int, max_tile: int | None) -> int:
    """`max_batch`, or fewer where the U-Net works on more than 64 × 64 places."""
    places = config.image_size // config.unet.patch_size
    return max_batch * 64**2 // places**2


def example(model: ConsistencyDecoder) -> Example:
    """A picture of `image_size`, with all its evaluations."""
    c = model.config

    def once() -> Condition:
        side = c.image_size // c.latents.factor
        return model.condition(torch.zeros(1, c.latents.channels, side, side))

    def step(condition: Any) -> None:
        for _ in c.diffusion.drawn_at:
            x_t = torch.zeros(1, c.unet.in_channels, c.image_size, c.image_size)
            model(x_t, torch.zeros(1, dtype=torch.long), condition)

    return Example(once, step)


def complete(config: ConsistencyDecoderConfig, neighbours: Neighbours, data: DataConfig) -> ConsistencyDecoderConfig:
    """The config with the facts of its autoencoder, if it has one beside it; else samples bring latents, of that which
    its teacher knows.

    Raises UsageError for an autoencoder whose latents are others than those that the config names.
    """
    autoencoder: Any = neighbours.get("autoencoder")
    teacher: Any = neighbours.get("teacher")
    ours = config.latents
    if autoencoder is None:
        known = ours.fingerprint or (teacher.config.latents.fingerprint if teacher is not None else ())
        return config.model_copy(update={"latents": ours.model_copy(update={"fingerprint": known})})
    theirs = tuple(autoencoder.fingerprint())
    if ours.fingerprint and not (len(ours.fingerprint) == len(theirs) and same_neighbour(ours.fingerprint, theirs)):
        raise UsageError("model.latents.fingerprint is of another autoencoder than the one that is given; leave it out")
    facts = {"channels": autoencoder.channels, "factor": autoencoder.factor}
    latents = follow(ours, "model.latents.", "the autoencoder", **facts)
    return config.model_copy(update={"latents": latents.model_copy(update={"fingerprint": theirs})})


def fits(model: ConsistencyDecoder, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures or windows of them that the network or the autoencoder cannot fold, and for pictures that
    are mirrored without their latents."""
    fold, crop = model.config.fold, options.crop
    if data.side % fold:
        raise UsageError(f"{data.side_key}={data.side} must be a multiple of {fold}")
    if crop is not None and (crop % fold or crop > data.side):
        raise UsageError(f"task.crop={crop} must be a multiple of {fold}, and {data.side_key}={data.side} at most")
    if data.flip and "autoencoder" not in neighbours:
        raise UsageError(
            "data.flip=true mirrors pictures, but not the latents beside them; give needs.autoencoder instead"
        )
