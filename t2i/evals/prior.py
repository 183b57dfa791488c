"""How well drawn embeddings stand for true ones, and what variances of the steps are worth.

N embeddings · D width · T steps of a process
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.diffusion.prediction import Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.evals.batches import pictures
from t2i.evals.report import Report
from t2i.pipeline.base import Pipeline
from t2i.stages.prior.model import PriorVariance
from t2i.stages.prior.sample import sample
from t2i.stages.prior.task import PriorOptions, PriorTask

_BATCH = 32


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the Gaussians of the moments of two sets (N, D) (Heusel et al. 2017, eq. 6); biased
    upwards, by about as much for every set of N."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)  # (D, D)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()  # trace of (cov_a cov_b)^(1/2)
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both)


def variance_ratio(drawn: Tensor, true: Tensor) -> float:
    """Mean over dimensions of the variance of one set (N, D) over that of another; 1 is right."""
    return float((drawn.double().var(dim=0) / true.double().var(dim=0)).mean())


def compare(drawn: Tensor, true: Tensor) -> dict[str, float]:
    """Of two sets (N, D), row i of one being drawn for what row i of the other is."""
    return {
        "frechet": frechet(drawn, true),
        "variance_ratio": variance_ratio(drawn, true),
        "cosine": float(torch.cosine_similarity(drawn, true).mean()),
    }


def bound(process: Process, errors: Tensor, parametrisation: Parametrisation) -> float:
    """Nats per dimension, at most, that continuous data costs in the steps of a process (Ho et al. 2020, eq. 5).

    Args:
        errors: (T,) float64, mean squared errors of x_0 at every step, per dimension.
        parametrisation: whose variances depend on the step alone.

    The cost of x_T is left out: it is the same for all variances, and next to nothing.
    """
    table, v = process.tables, parametrisation.x_0_variance
    like = torch.zeros(1, device=None if v is None else v.device)
    rows = [parametrisation.log_variance(process, None, like, step) for step in range(process.num_steps)]
    log_variance = torch.cat(rows).cpu().double()
    lower, variance = table["posterior_variance"], log_variance.exp()  # (T,)
    around = lower + table["posterior_x_0"].square() * errors  # what x_{n-1} varies around the mean that is predicted
    divergence = 0.5 * (log_variance[1:] - lower[1:].log() - 1 + around[1:] / variance[1:])
    density = 0.5 * (math.log(2 * math.pi) + log_variance[0] + around[0] / variance[0])  # of x_0 itself
    return float(divergence.sum() + density)


def table(rows: Mapping[str, Mapping[str, float]], what: str) -> str:
    """Lines to print of what `compare` says of each row, and of its `bound` where there is one."""
    lines = [what, f"{'variance':<16}{'Fréchet':>9}{'variance ratio':>16}{'cosine':>9}{'nats/dim':>11}"]
    for name, row in rows.items():
        bound = f"{row['bound']:>11.4f}" if "bound" in row else ""
        lines.append(f"{name:<16}{row['frechet']:>9.4f}{row['variance_ratio']:>16.4f}{row['cosine']:>9.4f}{bound}")
    if "analytic" not in rows:
        lines.append("its analytic variances were never measured; t2i calibrate does that")
    return "\n".join(lines)


def prior(
    model: str, *, data: str = "shapes", num: int = 512, steps: str | int = 8, seed: int = 0, device: str = "auto"
) -> Report:
    """What fixed and analytic variances are worth to a prior that takes few steps.

    One embedding is drawn for each held-out caption, by DDPM's sampler without guidance, from the same noise for every
    variance. As many other pictures show how far apart two sets of true embeddings are.

    Args:
        model: a pipeline with a CLIP and a prior, by name or folder; analytic variances are those that `t2i calibrate`
            has measured.
        data: shapes, a folder or shards; the pictures of it that training holds out.
        num: captions, at most.
        steps: of the process, spaced as for sampling.

    Raises UsageError for a model without a prior and for steps that cannot be, DataError for unusable data.
    """
    pipe = Pipeline.from_pretrained(model, device=device)
    clip, network = pipe.parts.get("clip"), pipe.parts.get("prior")
    kind = pipe.planner.stages["prior"].name if network is not None else ""
    if clip is None or network is None or kind != "prior":
        raise UsageError(f"{model}: no diffusion prior among {', '.join(pipe.parts)}")
    sampling = Sampling(steps, "ddpm")
    task = PriorTask(network, PriorOptions(sampling=Sampling(steps=1)), clip=clip)
    with explain(f"steps of {model}", UsageError):
        process = task.process.respace(steps)
    kinds: list[PriorVariance] = ["fixed_small", "fixed_large"]
    kinds += ["analytic"] if network.config.diffusion.variance == "analytic" else []
    loader = Loader(
        DataConfig(source=data, size=clip.image_size, num_workers=0),
        seed=seed,
        batch_size=min(_BATCH, num),
        split="val",
    )
    true: list[Tensor] = []  # (B, D) each
    errors: list[Tensor] = []  # (B, T)
    drawn: dict[PriorVariance, list[Tensor]] = {kind: [] for kind in kinds}
    with torch.no_grad():
        for batch in pictures(loader, 2 * num, pipe.device):
            true.append(clip.encode_image(batch["image"]).cpu())
            if sum(len(part) for part in errors) < num:
                errors.append(task.squared_errors(batch, process))
                text, seeds = clip.encode_text(batch["caption"]), batch["seed"]
                for kind, parts in drawn.items():
                    streams = Streams(seeds, "eval")
                    how = replace(sampling, variance=kind)
                    parts.append(sample(network, text, streams, how, num_candidates=1).cpu())
    z_i, others = torch.cat(true).tensor_split([sum(len(part) for part in errors)])
    rows = {"other pictures": compare(others, z_i[: len(others)])} if len(others) > 1 else {}
    for kind, parts in drawn.items():
        rows[kind] = compare(torch.cat(parts), z_i)
        diffusion, x_0_variance = network.diffusion(kind)
        form = diffusion.parametrisation(x_0_variance)
        rows[kind]["bound"] = bound(process, torch.cat(errors).mean(dim=0), form)
    facts = {"model": model, "data": data, "steps": list(process.positions), "pictures": len(z_i), "rows": rows}
    where = f"{process.num_steps} steps, {len(z_i)} held-out pictures of {data}"
    return Report(table(rows, where), facts)
