"""Claim 19: degradations in training make an upsampler robust to a decoder's pictures."""

import random
from statistics import fmean
from typing import Any

import lab as laboratory
import torch
import torch.nn.functional as F
from lab import Claim, Difference, Lab, Result, Value, bars, main, pictures
from torch import Tensor

from t2i.core.measures import psnr
from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.data.shapes.captions import short
from t2i.diffusion.sampling import Sampling
from t2i.evals.compose import load_reader
from t2i.io.images import to_pil
from t2i.nn.ports import Given
from t2i.stages.autoencoder.perceptual import Distance
from t2i.stages.registry import load_stage
from t2i.stages.upsampler.sample import sample

CLAIM = Claim(
    19,
    "degradations",
    "Degraded small pictures in training make an upsampler robust to a decoder's pictures",
    "Ramesh et al. 2022, arXiv 2204.06125, section 2.1; Ho et al. 2021, arXiv 2106.15282",
    "Small upsamplers from 64 to 128 px learn the same crops, once from the small pictures as they are, once blurred "
    "and noised as in `configs/shapes/up256.yaml`, once through the light BSR chain. Each then enlarges a decoder's "
    "pictures of which the truth is known: held-out renders, noised to three tenths of the steps and drawn again by "
    "the bundled GLIDE. What decides is how far the large picture is from the render in features of the bundled reader "
    "(LPIPS' formula), without degradations against blur, which is what the paper's first upsampler has; BSR, that of "
    "its second, and pictures that no decoder has touched stand beside it.",
)
ARMS = {
    "none": ["task.degradation={blur: 0.0, noise: 0.0}"],
    "blur and noise": ["task.degradation={blur: 0.5, sigma: [0.4, 0.8], noise: 0.05}"],
    "BSR, light": ["task.degradation={kind: bsr_light}"],
}
MEASURES = ("decoder's pictures, distance", "decoder's pictures, dB", "renders, distance", "renders, dB")
STRENGTH = 0.3


def trained(lab: Lab, arm: str, seed: int) -> Any:
    name = f"{arm.split()[0].strip(',').lower()}-{seed}{'-tiny' if lab.tiny else ''}"
    size = [f"train.steps={lab.choose('steps', 800, 2)}", f"train.batch_size={lab.choose('batch', 16, 2)}"]
    world = ["model.low_size=64", "model.image_size=128", "model.unet.channels=32", "data.size=128", "data.crop=32"]
    how = [*world, *size, f"train.seed={seed}", "optim.warmup=20", "train.save_every=200", "train.ema=[0.99]"]
    folder = lab.train(name, "configs/shapes/up256.yaml", *how, "train.precision=fp32", *ARMS[arm])
    return load_stage(folder, expect="upsampler")


def drawn_again(renders: Tensor, captions: list[str], steps: int) -> Tensor:
    """What a decoder makes of noised pictures, (N, 3, 64, 64)."""
    pipe, how = laboratory.open_pipeline("shapes-glide"), {"steps": {"decoder": steps}, "stop_after": "decoder"}
    rows = [
        pipe.edit(image, caption, STRENGTH, seed=i, progress=False, **how)
        for i, (image, caption) in enumerate(zip(to_pil(renders), captions, strict=True))
    ]
    return torch.cat([pictures(row) for row in rows])


@torch.no_grad()
def enlarged(model: Any, small: Tensor, steps: int) -> Tensor:
    """(N, 3, 64, 64) → (N, 3, 128, 128); picture i has the same noise in every arm."""
    parts = []
    for first in range(0, len(small), 20):
        some = small[first : first + 20]
        streams = Streams(list(range(first, first + len(some))), "claim")
        parts.append(sample(model, model.condition(some, Given(len(some))), streams, Sampling(steps, "ddim")))
    return torch.cat(parts).clamp(-1, 1)


@torch.no_grad()
def run(lab: Lab) -> Result:
    num, steps = lab.choose("pictures", 100, 2), lab.choose("upsampler's steps", 4, 2)
    seeds = [seed | VAL_SCENES for seed in range(60_000, 60_000 + num)]
    scenes = [shapes.scene_from_seed(seed) for seed in seeds]
    captions = [short(scene, random.Random(seed)) for seed, scene in zip(seeds, scenes, strict=True)]
    truth = shapes.render(scenes, 128)
    clean = F.avg_pool2d(truth, 2)
    small = {"decoder's pictures": drawn_again(clean, captions, lab.choose("decoder's steps", 25, 4)), "renders": clean}
    distance = Distance(load_reader())
    found: dict[str, dict[str, list[float]]] = {arm: {m: [] for m in MEASURES} for arm in ARMS}
    shown = [F.interpolate(small["decoder's pictures"][:4], scale_factor=2.0)]
    for arm in ARMS:
        for seed in lab.seeds:
            with torch.enable_grad():
                model = trained(lab, arm, seed)
            for what, images in small.items():
                large = enlarged(model, images, steps)
                far = [float(distance(a[None], b[None])) for a, b in zip(large, truth, strict=True)]
                found[arm][f"{what}, distance"].append(fmean(far))
                found[arm][f"{what}, dB"].append(fmean(psnr(large, truth).tolist()))
                if what != "renders" and seed == lab.seeds[0]:
                    shown.append(large[:4])
    rows = {arm: {what: Value.of_trainings(values) for what, values in row.items()} for arm, row in found.items()}
    what = MEASURES[0]
    gained = [a - b for a, b in zip(found["none"][what], found["blur and noise"][what], strict=True)]
    decides = [Difference("distance, no degradations - blur and noise", Value.of_trainings(gained))]
    covers = "Intervals are over trainings, paired by seed, on the same pictures and noise."
    return Result(rows, decides, covers, {"shown": torch.stack(shown)})


def plot(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    bars(left, result.rows, MEASURES[0], "distance from the render, reader's features")
    shown = result.data["shown"].clamp(-1, 1).add(1).div(2)  # (4, n, 3, 128, 128), a row an arm
    right.imshow(torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1).permute(1, 2, 0).numpy())
    right.set_yticks([64 + 128 * i for i in range(len(shown))], ["decoder's", *ARMS], fontsize=8)
    right.set_xticks([])


if __name__ == "__main__":
    main(CLAIM, run, plot)
