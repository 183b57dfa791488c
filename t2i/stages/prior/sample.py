"""Drawing image embeddings from sentences.

B batch · D width of CLIP embeddings
"""

from dataclasses import replace

import torch
from torch import Tensor

from t2i.core.errors import DataError
from t2i.core.seed import Streams
from t2i.core.types import StepCallback, TextFeatures
from t2i.diffusion.sampling import Sampling, draw
from t2i.diffusion.sphere import best_of
from t2i.stages.prior.model import Prior


@torch.no_grad()
def sample(
    model: Prior,
    text: TextFeatures,
    streams: Streams,
    sampling: Sampling,
    *,
    null: TextFeatures | None = None,
    num_candidates: int = 2,
    callback: StepCallback | None = None,
) -> Tensor:
    """CLIP image embeddings for sentences, (B, D), of unit norm unless the prior's CLIP has others.

    Args:
        text: features of B sentences.
        streams: one random stream per sentence.
        null: features of the empty or the negative sentence, same batch; needed when guidance is not 1.
        num_candidates: embeddings drawn per sentence; the one with the largest dot product with the sentence's own
            embedding is kept (Ramesh et al. 2022, section 2.2 draws two).

    Raises DataError for a prior that was never calibrated.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
    if not model.calibrated:
        raise DataError("this prior has no CLIP statistics (mean and std are NaN); call calibrate() or load them")
    config = model.config
    diffusion, x_0_variance = model.diffusion(sampling.variance)
    null_condition = None
    if null is not None and sampling.guidance != 1:
        length = max(text.mask.shape[1], null.mask.shape[1])
        text, null = text.padded(length), null.padded(length)
        null_condition = model.condition(null)
    sampling = replace(sampling, clamp=sampling.bound(config.clamp) or False)
    condition = model.condition(text)
    candidates = []
    for _ in range(num_candidates):
        x_T = streams.normal(config.clip_dim).to(text.pooled.device)  # (B, D)
        x_0 = draw(
            model, diffusion, condition, null_condition, sampling, x_T, streams,
            x_0_variance=x_0_variance, callback=callback,
        )  # fmt: skip
        candidates.append(model.restore(x_0))
    return best_of(torch.stack(candidates), text.pooled)
