"""Drawing image embeddings from sentences, as DALLE2-pytorch does; in eras A and B, which drew by all steps, as in C.

B batch · D width of CLIP embeddings
"""

from functools import partial

import torch
from torch import Tensor

from t2i.core.types import Condition, NoiseSource, StepCallback, TextFeatures
from t2i.diffusion.guidance import ClassifierFree
from t2i.diffusion.samplers import ddim
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.sphere import best_of
from t2i.stages.dalle2_pytorch.grid import grid
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig


@torch.no_grad()
def sample(
    model: LaionPrior,
    text: TextFeatures,
    streams: NoiseSource,
    sampling: Sampling,
    *,
    num_candidates: int = 2,
    callback: StepCallback | None = None,
) -> Tensor:
    """CLIP image embeddings for sentences, (B, D), of nearly unit norm.

    Args:
        text: features of B sentences.
        streams: one random stream per sentence.
        sampling: steps (a number) and guidance, 1 where there is no null; the sampler is its own.
        num_candidates: embeddings drawn per sentence; the one nearest to the sentence's own is kept.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
    condition = model.condition(text)
    null = model.null_condition(len(text.mask)) if sampling.guidance != 1 else None
    once = partial(chain, model, condition, null, sampling, streams, text.pooled.device, callback)
    return best_of(torch.stack([once() for _ in range(num_candidates)]), text.pooled, by="cosine")


def chain(
    model: LaionPrior,
    condition: Condition,
    null: Condition | None,
    sampling: Sampling,
    noise: NoiseSource,
    device: torch.device | str = "cpu",
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM with eta 1 on a grid of its own: the update reads alpha_bar one step before the time that the network and
    eps are at. Returns embeddings (B, D)."""
    diffusion, config = model.config.diffusion, model.config
    process, times = diffusion.process(), _grid(config, sampling)[1:]  # the network is not asked at the first
    kept = [time for time in times if time > 0]  # at step 0 there is no alpha_bar before
    guided = partial(
        ClassifierFree, model, condition, null, parametrisation=diffusion.parametrisation(), scale=sampling.guidance,
        clamp=sampling.bound(diffusion.clamp), batch="split",
    )  # fmt: skip
    x_T = noise.normal(config.clip_dim).to(device)
    x = ddim(
        guided(process=process.respace(kept)),
        x_T,
        process.respace(kept, lag=1),
        eta=1.0,
        noise=noise,
        callback=callback,
    )
    if 0 in times:
        x = guided(process=process.respace([0]))(x, 0).x_0
    return x / model.scale


def check(config: LaionPriorConfig, sampling: Sampling) -> None:
    """ValueError for steps that this prior cannot take."""
    _grid(config, sampling)


def _grid(config: LaionPriorConfig, sampling: Sampling) -> list[int]:
    """Times from data to noise: from 0, in era D from -1."""
    return grid("prior", sampling.steps, config.diffusion.num_steps, first=-1 if config.era == "D" else 0)
