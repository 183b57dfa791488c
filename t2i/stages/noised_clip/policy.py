"""What a noised CLIP to be trained takes from its data."""

from typing import Any

from t2i.data.config import DataConfig
from t2i.stages.follow import check_side, with_words
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig
from t2i.stages.stage import Neighbours


def complete(config: NoisedClipConfig, neighbours: Neighbours, data: DataConfig) -> NoisedClipConfig:
    """The config with the words that its tokeniser knows."""
    return config.model_copy(update={"tokenizer": with_words(config.tokenizer)})


def fits(model: NoisedClip, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side."""
    check_side(data, model.config.image_size)
