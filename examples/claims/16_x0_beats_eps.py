"""Claim 16: a prior that predicts the embedding itself beats one that predicts the noise."""

import random
from statistics import fmean
from typing import Any

import lab as laboratory
import torch
import torch.nn.functional as F
from lab import Claim, Difference, Lab, Result, Value, bars, frechet, main
from torch import Tensor

from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.data.shapes.captions import short
from t2i.diffusion.config import Diffusion
from t2i.diffusion.sampling import Sampling
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.sample import sample
from t2i.stages.prior.task import PriorOptions, PriorTask
from t2i.stages.registry import load_stage

CLAIM = Claim(
    16,
    "x0_beats_eps",
    "A prior that predicts the embedding itself beats one that predicts the noise",
    "Ramesh et al. 2022, arXiv 2204.06125, section 2.2",
    "Small diffusion priors learn the bundled CLIP's embeddings of the same pictures from the same first weights, in "
    "the same batches, noise and number of steps; one predicts the clean embedding, the other the noise. The paper "
    "finds the former better and gives no number. What decides, over embeddings that are drawn for held-out captions "
    "without guidance, is both: the cosine with the embedding of the caption's own picture, and the Fréchet distance "
    "to all of these.",
)
TARGETS = {"x0": "predicts the embedding", "eps": "predicts the noise"}


class Known:
    """CLIP whose embeddings of pictures are known: they stand where pictures belong."""

    def __init__(self, clip: Any) -> None:
        self.dim, self.encode_text = clip.dim, clip.encode_text

    def encode_image(self, image: Tensor) -> Tensor:
        return image


@torch.no_grad()
def embedded(clip: Any, seeds: range) -> tuple[Tensor, list[str]]:
    """Embeddings (N, D) of scenes, and a short caption of each."""
    parts, captions = [], []
    for first in range(0, len(seeds), 100):
        some = seeds[first : first + 100]
        scenes = [shapes.scene_from_seed(seed) for seed in some]
        parts.append(clip.encode_image(shapes.render(scenes, 64)))
        captions += [short(scene, random.Random(seed)) for seed, scene in zip(some, scenes, strict=True)]
    return torch.cat(parts), captions


def trained(lab: Lab, clip: Any, target: Any, seed: int, data: tuple[Tensor, list[str]]) -> Prior:
    """A prior of a target; with the same seed all but that is the same."""
    folder = lab.folder / f"{target}-{seed}{'-tiny' if lab.tiny else ''}.pt"
    steps, batch, width = lab.choose("steps", 400, 2), lab.choose("batch", 64, 2), lab.choose("width", 128, 16)
    torch.manual_seed(seed)
    config = PriorConfig(
        clip_dim=clip.dim, text_width=clip.config.text.width, context=clip.tokenizer.context, width=width,
        layers=lab.choose("layers", 3, 1), heads=2,
        diffusion=Diffusion(target=target, variance="fixed_small", space="vector"),
    )  # fmt: skip
    prior = Prior(config)
    if folder.is_file():
        prior.load_state_dict(torch.load(folder, weights_only=True))
        return prior.eval()
    z, captions = data
    prior.calibrate(z)
    task = PriorTask(prior, PriorOptions(num_draws=8), clip=Known(clip))
    optimiser = torch.optim.AdamW(prior.parameters(), lr=1e-3, weight_decay=0.02)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 50), 1 - step / steps
        optimiser.param_groups[0]["lr"] = 1e-3 * warm * left
        rows = torch.randint(len(z), (batch,), generator=order)
        seeds = (torch.arange(batch) + (seed * steps + step) * batch).tolist()
        some = {"image": z[rows], "caption": [captions[i] for i in rows.tolist()], "seed": seeds}
        loss = task.loss(some)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(prior.state_dict(), folder)
    return prior.eval()


@torch.no_grad()
def drawn(prior: Prior, clip: Any, captions: list[str], steps: int) -> Tensor:
    """An embedding for each caption, (N, D)."""
    parts = []
    for first in range(0, len(captions), 100):
        some = captions[first : first + 100]
        streams = Streams(list(range(first, first + len(some))), "claim")
        text = clip.encode_text(some)
        parts.append(sample(prior, text, streams, Sampling(steps, "ddpm"), num_candidates=1))
    return torch.cat(parts)


def run(lab: Lab) -> Result:
    clip: Any = load_stage(laboratory.ROOT / "weights" / "shapes" / "clip", expect="clip")
    data = embedded(clip, range(lab.choose("pictures", 12_000, 8)))
    held = lab.choose("held-out captions", 1000, 6)
    true, captions = embedded(clip, range(50_000 | VAL_SCENES, (50_000 | VAL_SCENES) + held))
    steps = lab.choose("drawn in steps", 64, 2)
    near: dict[str, list[float]] = {target: [] for target in TARGETS}
    far: dict[str, list[float]] = {target: [] for target in TARGETS}
    for seed in lab.seeds:
        for target in TARGETS:
            z = drawn(trained(lab, clip, target, seed, data), clip, captions, steps)
            near[target].append(fmean(F.cosine_similarity(z, true).tolist()))
            far[target].append(frechet(z.double(), true.double()))
    rows = {
        name: {
            "cosine with the picture's": Value.of_trainings(near[target]),
            "Fréchet, CLIP": Value.of_trainings(far[target]),
        }
        for target, name in TARGETS.items()
    }
    nearer = [a - b for a, b in zip(near["x0"], near["eps"], strict=True)]
    closer = [b - a for a, b in zip(far["x0"], far["eps"], strict=True)]
    decides = [
        Difference("cosine, embedding - noise", Value.of_trainings(nearer)),
        Difference("Fréchet distance, noise - embedding", Value.of_trainings(closer)),
    ]
    return Result(rows, decides, "Intervals are over trainings, paired by seed.")


def plot(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2)
    bars(left, result.rows, "cosine with the picture's", "cosine with the picture's embedding")
    bars(right, result.rows, "Fréchet, CLIP", "Fréchet distance to pictures' embeddings, CLIP")


if __name__ == "__main__":
    main(CLAIM, run, plot)
