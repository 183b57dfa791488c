"""DALLE2-pytorch's decoder in a chain and in a training."""

from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.types import Condition, StepCallback
from t2i.data.config import DataConfig
from t2i.diffusion.sampling import Hooks
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.decoder.sample import invert, sample
from t2i.stages.follow import follow, need_clip
from t2i.stages.stage import ClipFacts, How, Inputs, Neighbours


def draw(model: LaionDecoder, inputs: Inputs, how: How) -> Tensor:
    """Pictures (B, 3, S, S) of embeddings and, where there are any, sentences; UsageError for negative ones."""
    if any(inputs.negatives):
        raise UsageError("LAION's decoder knows no negative prompts")
    null = model.null_condition(inputs.num) if how.sampling.guidance != 1 else None
    hooks = how.hooks if how.hooks != Hooks() else None
    return sample(
        model, _condition(model, inputs), null, how.streams, how.sampling,
        hooks=hooks, x_T=how.x_T, callback=how.callback,
    )  # fmt: skip


def inverted(
    model: LaionDecoder,
    inputs: Inputs,
    x_0: Tensor,
    steps: int | str,
    *,
    corrections: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """See `Invert`."""
    return invert(model, _condition(model, inputs), x_0, steps, corrections=corrections, callback=callback)


def complete(config: LaionDecoderConfig, neighbours: Neighbours, data: DataConfig) -> LaionDecoderConfig:
    """The config with the facts of its CLIP."""
    clip = need_clip(neighbours.get("clip"), "a laion_decoder")
    return follow(config, "model.", "the CLIP", clip_dim=clip.dim, clip_fingerprint=clip.fingerprint())


def clip_facts(config: LaionDecoderConfig) -> ClipFacts:
    """See `ClipFacts`."""
    return ClipFacts(config.clip_dim, config.clip_text_width, fingerprint=config.clip_fingerprint)


def _condition(model: LaionDecoder, inputs: Inputs) -> Condition:
    assert inputs.z_i is not None
    has_text = model.config.clip_text_width is not None and any(inputs.prompts)
    text = inputs.encode(inputs.prompts) if has_text and inputs.encode is not None else [None]
    return model.condition(inputs.z_i, text[0])
