"""What a T5 of our own takes from its data."""

from typing import Any

import torch

from t2i.data.config import DataConfig
from t2i.stages.follow import with_words
from t2i.stages.stage import Example, Neighbours
from t2i.stages.t5.model import T5, T5Config


def complete(config: T5Config, neighbours: Neighbours, data: DataConfig) -> T5Config:
    """The config with the words that its tokeniser knows."""
    return config.model_copy(update={"tokenizer": with_words(config.tokenizer)})


def example(model: T5) -> Example:
    """A caption is read in one step; a source, whose weights are elsewhere, is not opened to be counted."""
    context = model.config.tokenizer.context

    def read(_: Any) -> None:
        if model.pretrained is None:
            model.encode_tokens(torch.zeros(1, context, dtype=torch.long), torch.ones(1, context, dtype=torch.bool))

    return Example(lambda: None, read)
