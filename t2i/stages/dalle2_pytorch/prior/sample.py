"""Drawing image embeddings from sentences, as DALLE2-pytorch does; in eras A and B, which drew by all steps, as in C.

B batch · D width of CLIP embeddings
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.core.types import Condition, NoiseSource, Prediction, StepCallback, TextFeatures
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior


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
    candidates = [
        chain(model, condition, null, sampling, streams, text.pooled.device, callback) for _ in range(num_candidates)
    ]
    return nearest(torch.stack(candidates), text.pooled)


def chain(
    model: LaionPrior,
    condition: Condition,
    null: Condition | None,
    sampling: Sampling,
    noise: NoiseSource,
    device: torch.device | str = "cpu",
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM with eta 1 (Song et al. 2020, eq. 12 and 16) on a grid of its own: the update reads alpha_bar one step
    before the time that the network and eps are at. Returns embeddings (B, D)."""
    process = Process.from_schedule(model.config.schedule, model.config.num_steps)
    shifted, times = process.tables["alpha_bar_prev"], grid(model, sampling.steps)
    x = noise.normal(model.config.clip_dim).to(device)
    for done, (time, after) in enumerate(pairwise(times), 1):
        t = torch.full((len(x),), time, device=device)
        x_0 = model(x, t, condition)
        if null is not None:
            without = model(x, t, null)
            x_0 = without + sampling.guidance * (x_0 - without)
        alpha_bar = process.at("alpha_bar", time, x)
        eps = (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        if after <= 0:
            x = x_0
        else:
            now, then = (shifted[i].item() for i in (time, after))
            sigma = ((1 - now / then) * (1 - then) / (1 - now)) ** 0.5
            x = then**0.5 * x_0 + (1 - then - sigma**2) ** 0.5 * eps + sigma * noise.normal(x.shape[1]).to(device)
        if callback is not None:
            callback(done, len(times) - 1, x, Prediction(x_0, eps, torch.zeros_like(x_0)))
    return x / model.scale


def check(model: LaionPrior, sampling: Sampling) -> None:
    """ValueError for steps that this prior cannot take."""
    grid(model, sampling.steps)


def grid(model: LaionPrior, steps: str | int) -> list[int]:
    """Times from noise to data, ends included: evenly between 0, in era D -1, and the last, which is left out."""
    if not isinstance(steps, int) and not steps.isdecimal():
        raise ValueError(f"this prior takes a number of steps, got {steps!r}")
    first, more = (0.0, 2) if model.config.era != "D" else (-1.0, 1)
    if not 1 <= int(steps) < model.config.num_steps:
        raise ValueError(f"steps must lie in 1…{model.config.num_steps - 1}, got {steps}")
    return torch.linspace(first, model.config.num_steps, int(steps) + more)[:-1].int().tolist()[::-1]


def nearest(z_i: Tensor, z_t: Tensor) -> Tensor:
    """Of N candidates (N, B, D) the ones nearest to (B, D) in angle."""
    best = F.cosine_similarity(z_i, z_t, dim=-1).argmax(dim=0)  # (B,)
    return z_i[best, torch.arange(len(best), device=best.device)]
