"""DALLE2-pytorch's prior in a chain and in a training."""

from torch import Tensor

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig
from t2i.stages.dalle2_pytorch.prior.sample import sample
from t2i.stages.follow import follow, need_clip
from t2i.stages.stage import ClipFacts, How, Inputs, Neighbours


def draw(model: LaionPrior, inputs: Inputs, how: How) -> Tensor:
    """Embeddings (B, D) of sentences; UsageError for negative ones."""
    if any(inputs.negatives):
        raise UsageError("LAION's prior knows no negative prompts")
    assert inputs.encode is not None
    (text,) = inputs.encode(inputs.prompts)
    return sample(model, text, how.streams, how.sampling, num_candidates=how.num_candidates, callback=how.callback)


def complete(config: LaionPriorConfig, neighbours: Neighbours, data: DataConfig) -> LaionPriorConfig:
    """The config with the facts of its CLIP."""
    clip = need_clip(neighbours.get("clip"), "a laion_prior")
    return follow(config, "model.", "the CLIP", clip_dim=clip.dim, clip_fingerprint=clip.fingerprint())


def clip_facts(config: LaionPriorConfig) -> ClipFacts:
    """See `ClipFacts`; CLIP's embeddings and text states are of one width there."""
    return ClipFacts(config.clip_dim, config.clip_dim, config.context, True, config.clip_fingerprint)
