"""Drawing a large picture from a small one.

B batch · h w pixels of the small picture · H W of the large one
"""

from dataclasses import replace

import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition, StepCallback
from t2i.diffusion.prediction import Model
from t2i.diffusion.sampling import Hooks, Sampling, draw
from t2i.diffusion.tiles import Tiled
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig


def quantised(model: Upsampler, low_res: Tensor) -> Tensor:
    """Small pictures (B, 3, h, w) in [-1, 1] at the `UpsamplerConfig.levels` that `model` takes, float32.

    Values beyond stay beyond where levels are rounded, as between GLIDE's networks; ADM's go through a file.
    """
    if model.config.levels == "exact":
        return low_res.float()
    levels = (low_res.float() + 1) * 127.5
    if model.config.levels == "rounded":
        return levels.round() / 127.5 - 1
    return (levels + 1e-3).floor().clamp(0, 255) / 127.5 - 1  # 3 may be 2.9999


@torch.no_grad()
def sample(
    model: Upsampler,
    condition: Condition,
    streams: Streams,
    sampling: Sampling,
    *,
    hooks: Hooks = Hooks(),
    max_tile: int | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Large pictures (B, 3, H, W) in [-1, 1] from `model.condition(quantised(model, low_res), …)`, of any size that the
    U-Net folds.

    Args:
        hooks: as in the decoder.
        max_tile: pixels of a side that the network sees at once, at most; None for all. See `Tiled`.
    """
    assert condition.image is not None
    last = None if model.last is None else tiled(model.last, model.config, max_tile)
    hooks = hooks if last is None else replace(hooks, last=last)
    x_T = streams.normal(model.config.unet.in_channels, *condition.image.shape[-2:]).to(condition.image.device)
    return draw(
        tiled(model, model.config, max_tile),
        model.config.diffusion,
        model.project(condition),
        None,
        sampling,
        x_T.contiguous(memory_format=torch.channels_last),
        streams,
        hooks=hooks,
        callback=callback,
    )


def tiled(model: Model, config: UpsamplerConfig, max_tile: int | None) -> Model:
    """`model` on tiles that its U-Net folds, or as it is. Raises ValueError for networks that know where in the
    picture a pixel lies."""
    if max_tile is None:
        return model
    if config.unet.attention_positions:
        raise ValueError("attention_positions=True tells places in the whole picture, which a tile is not")
    return Tiled(model, max_tile - max_tile % config.unet.factor, config.unet.factor)
