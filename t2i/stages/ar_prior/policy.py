"""The autoregressive prior in a chain and in a training."""

import torch
from torch import Tensor

from t2i.core.types import TextFeatures
from t2i.data.config import DataConfig
from t2i.stages.ar_prior.model import ArPrior, ArPriorConfig
from t2i.stages.ar_prior.sample import sample
from t2i.stages.follow import follow, need_clip
from t2i.stages.stage import ClipFacts, Example, How, Inputs, Neighbours


def draw(model: ArPrior, inputs: Inputs, how: How) -> Tensor:
    """Embeddings (B, D) of sentences, code by code; of the sampling only the guidance counts."""
    assert inputs.encode is not None
    guidance = how.sampling.guidance
    text, *null = inputs.encode(inputs.prompts, *([inputs.negatives] if guidance != 1 else []))
    return sample(model, text, how.streams, guidance, null=null[0] if null else None, callback=how.callback)


def complete(config: ArPriorConfig, neighbours: Neighbours, data: DataConfig) -> ArPriorConfig:
    """The config with the facts of its CLIP."""
    clip = need_clip(neighbours.get("clip"), "an ar_prior")
    facts = {
        "clip_dim": clip.dim,
        "clip_fingerprint": clip.fingerprint(),
        "text_width": clip.text_width,
        "context": clip.config.tokenizer.context,
    }
    return follow(config, "model.", "the CLIP", **facts)


def clip_facts(config: ArPriorConfig) -> ClipFacts:
    """See `ClipFacts`."""
    c = config
    return ClipFacts(c.clip_dim, c.text_width, c.context, c.unit_norm, c.clip_fingerprint)


def example(model: ArPrior) -> Example:
    """A sentence as long as can be, and all codes at once."""
    c = model.config

    def step(condition: object) -> None:
        model(torch.zeros(1, c.num_components, dtype=torch.long), condition)  # type: ignore[arg-type]

    sentence = TextFeatures(
        torch.zeros(1, c.clip_dim), torch.zeros(1, c.context, c.text_width), torch.ones(1, c.context, dtype=torch.bool)
    )
    return Example(lambda: model.condition(sentence), step)
