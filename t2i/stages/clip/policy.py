"""What a CLIP to be trained takes from its data, and the pictures that it takes."""

from typing import Any

import torch

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.stages.clip.model import ClipConfig, ClipEncoder
from t2i.stages.follow import with_words
from t2i.stages.stage import Example, Neighbours


def complete(config: ClipConfig, neighbours: Neighbours, data: DataConfig) -> ClipConfig:
    """The config with the words that its tokeniser knows."""
    return config.model_copy(update={"tokenizer": with_words(config.tokenizer)})


def fits(model: ClipEncoder, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side than the vision tower sees, or smaller ones."""
    architecture = model.config.architecture
    if architecture is None and data.side != model.image_size:
        raise UsageError(f"{data.side_key}={data.side} must equal model.vision.image_size={model.image_size}")
    if data.side < model.image_size:
        raise UsageError(
            f"{data.side_key}={data.side} is smaller than the {model.image_size} pixels that {architecture} sees"
        )


def example(model: ClipEncoder) -> Example:
    """A picture is seen in one step."""

    def see(_: None) -> None:
        if model.clip.visual is not None:
            with torch.enable_grad():  # the fast path of torch's attention, for inference, is not counted
                model.encode_image(torch.zeros(1, 3, model.image_size, model.image_size))

    return Example(lambda: None, see)
