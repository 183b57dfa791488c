"""Claim 18: variations of a picture keep what it means, and change its details."""

from typing import Any

import lab as laboratory
import torch
from lab import Claim, Difference, Lab, Result, Value, main, paired, pictures
from torch import Tensor

from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.evals.compose import load_reader
from t2i.io.images import to_pil

CLAIM = Claim(
    18,
    "variations_keep_semantics",
    "Variations of a picture keep what it means and change details that are not essential",
    "Ramesh et al. 2022, arXiv 2204.06125, section 3.1, Figure 3",
    "Held-out renders of one thing are taken apart into CLIP's embedding and the noise that DDIM gives back; from "
    "these the bundled decoder draws the picture again (eta 0) and two variations (eta 1, the model's guidance). The "
    "paper shows pictures. Here what a picture means is the colour and shape of its one thing, by the reader of "
    "scenes, and it is kept where nine in ten variations or more show just that (the goal of examples/08); details "
    "change where two variations are farther apart in pixels than the picture drawn again is from its source.",
)
KEPT = 90.0
FIRST = 20_000  # of the held-out scenes


def run(lab: Lab) -> Result:
    num, steps = lab.choose("pictures", 120, 2), lab.choose("steps", 25, 2)
    scenes = [shapes.scene_from_seed(seed | VAL_SCENES, {1: 1.0}) for seed in range(FIRST, FIRST + num)]
    things = [(scene.things[0].shape, scene.things[0].colour) for scene in scenes]
    truth = shapes.render(scenes, 64)
    pipe = laboratory.open_pipeline("shapes")
    how = {"steps": {"decoder": steps}, "seed": 0, "stop_after": "decoder", "progress": False}
    latent = pipe.encode(to_pil(truth), steps=steps, progress=False)
    again = pictures(pipe.reconstruct(latent, **how))
    varied = pictures(pipe.variations(latent, 2, eta=1.0, **how))
    one, other = varied[0::2], varied[1::2]
    same = {"render": shows(truth, things), "drawn again": shows(again, things)}
    twice = zip(shows(one, things), shows(other, things), strict=True)
    same["variation"] = [(a + b) / 2 for a, b in twice]
    strange = things[1:] + things[:1]
    same["variation of another picture"] = shows(one, strange)
    far = {"drawn again": apart(again, truth), "variation": apart(one, truth), "two variations": apart(one, other)}
    rows: dict[str, dict[str, Value]] = {name: {"same thing, %": Value.of(values)} for name, values in same.items()}
    for name, values in far.items():
        rows.setdefault(name, {})["distance in pixels"] = Value.of(values)
    decides = [
        Difference(f"show the same thing - {KEPT:g}, points", Value.of([v - KEPT for v in same["variation"]])),
        Difference("distance, two variations - drawn again", paired(far["two variations"], far["drawn again"])),
    ]
    shown = torch.stack([truth, again, one, other], dim=1)[:4]  # (4, 4, 3, 64, 64)
    covers = "Intervals are over pictures; distances are root mean squares in [-1, 1]. The networks are one each."
    return Result(rows, decides, covers, {"shown": shown})


def shows(images: Tensor, things: list[tuple[str, str]]) -> list[float]:
    """100 for each picture in which the reader sees this thing and no other, else 0."""
    found = [seen for part in images.split(64) for seen in load_reader().read(part)]
    return [100.0 * ([(s.shape, s.colour) for s in seen] == [t]) for seen, t in zip(found, things, strict=True)]


def apart(a: Tensor, b: Tensor) -> list[float]:
    """Root mean square of the difference of two pictures, of each pair of (N, 3, S, S)."""
    return (a - b).square().mean(dim=(1, 2, 3)).sqrt().tolist()


def plot(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    names = [name for name, row in result.rows.items() if "same thing, %" in row]
    for i, name in enumerate(names):
        value = result.rows[name]["same thing, %"]
        left.errorbar([value.mean], [i], xerr=[[value.half]] * 2, fmt="o", capsize=4, color=f"C{i}")
    left.axvline(KEPT, color="grey", linestyle=":")
    left.set_yticks(range(len(names)), [name.replace(" of ", "\nof ") for name in names])
    left.invert_yaxis()
    left.set_xlabel("same thing, %")
    shown = result.data["shown"].clamp(-1, 1).add(1).div(2)
    right.imshow(torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1).permute(1, 2, 0).numpy())
    side = shown.shape[-1]
    right.set_xticks([side * (i + 0.5) for i in range(4)], ["render", "again", "variation", "variation"], fontsize=8)
    right.set_yticks([])


if __name__ == "__main__":
    main(CLAIM, run, plot)
