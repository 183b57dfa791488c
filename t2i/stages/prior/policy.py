"""The prior in a chain and in a training: what it draws from, and what follows from its CLIP."""

import torch
from torch import Tensor

from t2i.core.types import TextFeatures
from t2i.data.config import DataConfig
from t2i.stages.follow import follow, need_clip
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.sample import sample
from t2i.stages.stage import ClipFacts, Example, How, Inputs, Neighbours


def draw(model: Prior, inputs: Inputs, how: How) -> Tensor:
    """Embeddings (B, D) of sentences, guided away from the negative ones."""
    assert inputs.encode is not None
    guided = [inputs.negatives] if how.sampling.guidance != 1 else []
    text, *null = inputs.encode(inputs.prompts, *guided)
    return sample(
        model, text, how.streams, how.sampling,
        null=null[0] if null else None, num_candidates=how.num_candidates, callback=how.callback,
    )  # fmt: skip


def complete(config: PriorConfig, neighbours: Neighbours, data: DataConfig) -> PriorConfig:
    """The config with the facts of its CLIP."""
    clip = need_clip(neighbours.get("clip"), "a prior")
    facts = {
        "clip_dim": clip.dim,
        "clip_fingerprint": clip.fingerprint(),
        "text_width": clip.text_width,
        "context": clip.config.tokenizer.context,
    }
    return follow(config, "model.", "the CLIP", **facts)


def clip_facts(config: PriorConfig) -> ClipFacts:
    """See `ClipFacts`."""
    c = config
    return ClipFacts(c.clip_dim, c.text_width, c.context, c.unit_norm, c.clip_fingerprint)


def example(model: Prior) -> Example:
    """A sentence as long as can be, and one step of one candidate."""
    c = model.config

    def step(condition: object) -> None:
        model(torch.zeros(1, c.clip_dim), torch.zeros(1, dtype=torch.long), condition)  # type: ignore[arg-type]

    sentence = TextFeatures(
        torch.zeros(1, c.clip_dim), torch.zeros(1, c.context, c.text_width), torch.ones(1, c.context, dtype=torch.bool)
    )
    return Example(lambda: model.condition(sentence), step)
