"""What a rewriter takes from its data."""

import torch

from t2i.data.config import DataConfig
from t2i.stages.follow import with_words
from t2i.stages.rewriter.model import Rewriter, RewriterConfig
from t2i.stages.stage import Example, Neighbours


def complete(config: RewriterConfig, neighbours: Neighbours, data: DataConfig) -> RewriterConfig:
    """The config with the words that its tokeniser knows."""
    return config.model_copy(update={"tokenizer": with_words(config.tokenizer)})


def example(model: Rewriter) -> Example:
    """The longest pair, read at once."""
    return Example(lambda: torch.zeros(1, model.config.length, dtype=torch.long), model)
