"""What a captioner takes from its data and from an earlier captioner, and the pictures that it takes."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from t2i.data.config import DataConfig
from t2i.nn.generate import Cache
from t2i.stages.captioner.model import Captioner, CaptionerConfig
from t2i.stages.follow import check_side, with_words
from t2i.stages.stage import Example, Neighbours


def complete(config: CaptionerConfig, neighbours: Neighbours, data: DataConfig) -> CaptionerConfig:
    """The config with the words that its tokeniser knows."""
    return config.model_copy(update={"tokenizer": with_words(config.tokenizer)})


def fits(model: Captioner, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side than the captioner's."""
    check_side(data, model.image_size)


def start(state: dict[str, Tensor], model: Captioner) -> dict[str, Tensor]:
    """Weights of an earlier captioner; places of its patches are interpolated to another number of them, as the paper
    goes on from 288 to 576 pixels."""
    places = state["places"]  # (P, W)
    if len(places) == model.num_patches:
        return state
    side, rows = round(model.num_patches**0.5), round(len(places) ** 0.5)
    grid = rearrange(places, "(h w) c -> 1 c h w", h=rows)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return state | {"places": rearrange(grid, "1 c h w -> (h w) c")}


def example(model: Captioner) -> Example:
    """A picture is read once, and each token of its caption is one step."""

    def step(cache: Cache) -> None:
        model.step(torch.zeros(1, 1, dtype=torch.long), cache)

    return Example(lambda: model.begin(torch.zeros(1, 3, model.image_size, model.image_size)), step)
