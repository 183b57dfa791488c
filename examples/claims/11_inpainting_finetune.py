"""Claim 11: a network that was fine-tuned to inpaint beats replacement."""

from typing import Any

import lab as laboratory
import torch
from lab import Claim, Difference, Lab, Result, Value, bars, main, paired, pictures
from PIL import Image
from torch import Tensor

from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.data.shapes.scene import COLOURS, SHAPES, Scene, box
from t2i.evals.compose import load_reader
from t2i.io.images import to_pil

CLAIM = Claim(
    11,
    "inpainting_finetune",
    "A network that was fine-tuned to inpaint beats one into whose every step what is known is written",
    "Nichol et al. 2021 (GLIDE), arXiv 2112.10741, section 3, on inpainting",
    "Held-out scenes of two things; one is hidden by a box, and a thing of another colour and shape is asked for in "
    "its place. The bundled GLIDE, one network that was fine-tuned to inpaint and also draws whole pictures, fills the "
    "box twice from the same noise: shown what stays (trained), and shown nothing, with what stays written into every "
    "predicted picture (replaced). The paper names edge artefacts of replacement. What decides is whether the picture "
    "shows just the thing that stays and the one asked for, by the reader of scenes, and the jump of pixels across the "
    "border of the box.",
)
WAYS = ("trained", "replaced")
SIZE = 64
Kind = tuple[str, str]  # a colour and a shape


def task(seed: int) -> tuple[Scene, tuple[int, int, int, int], Kind, Kind] | None:
    """A scene, a box of pixels (x0, y0, x1, y1) around one of its two things, the other thing, and what is asked for;
    None where the box would hide the other as well."""
    scene = shapes.scene_from_seed(seed | VAL_SCENES, {2: 1.0})
    hidden, stays = scene.things[seed % 2], scene.things[1 - seed % 2]
    x0, y0, x1, y1 = (side * SIZE for side in box(hidden, scene.camera))
    hole = (max(round(x0) - 3, 1), max(round(y0) - 3, 1), min(round(x1) + 3, SIZE - 1), min(round(y1) + 3, SIZE - 1))
    a0, b0, a1, b1 = (side * SIZE for side in box(stays, scene.camera))
    across = max(0.0, min(hole[2], a1) - max(hole[0], a0)) * max(0.0, min(hole[3], b1) - max(hole[1], b0))
    if across > 0 or min(hole[2] - hole[0], hole[3] - hole[1]) < 12:
        return None
    colour = COLOURS[(COLOURS.index(hidden.colour) + 1 + seed % (len(COLOURS) - 1)) % len(COLOURS)]
    shape = SHAPES[(SHAPES.index(hidden.shape) + 1 + seed % (len(SHAPES) - 1)) % len(SHAPES)]
    return scene, hole, (stays.colour, stays.shape), (colour, shape)


def run(lab: Lab) -> Result:
    num, times = lab.choose("scenes", 100, 2), lab.choose("pictures a scene", 2, 1)
    steps = lab.choose("steps", 25, 2)
    tasks = [found for seed in range(40_000, 40_000 + 20 * num) if (found := task(seed)) is not None][:num]
    pipe, shown = laboratory.open_pipeline("shapes-glide"), []
    right: dict[str, list[float]] = {way: [] for way in WAYS}
    jumps: dict[str, list[float]] = {way: [] for way in (*WAYS, "render")}
    for i, (scene, hole, stays, wanted) in enumerate(tasks):
        known = shapes.render([scene], SIZE)
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, hole)
        names = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape in (stays, wanted)]
        jumps["render"].append(jump(known, hole))
        row = [known[0]]
        for way in WAYS:
            drawn = pipe.inpaint(
                to_pil(known)[0], mask, " and ".join(names), method=way, seed=times * i, steps={"decoder": steps},
                stop_after="decoder", num_images_per_prompt=times, progress=False,
            )  # fmt: skip
            images = pictures(drawn)
            seen = [sorted((s.colour, s.shape) for s in things) for things in load_reader().read(images)]
            right[way].append(100 * sum(kinds == sorted([stays, wanted]) for kinds in seen) / times)
            jumps[way].append(jump(images, hole))
            row.append(images[0])
        shown.append(torch.stack(row))
    rows = {way: {"right, %": Value.of(right[way]), "jump at the border": Value.of(jumps[way])} for way in WAYS}
    rows["render, nothing hidden"] = {"jump at the border": Value.of(jumps["render"])}
    decides = [
        Difference("right, trained - replaced, points", paired(right["trained"], right["replaced"])),
        Difference("jump at the border, replaced - trained", paired(jumps["replaced"], jumps["trained"])),
    ]
    covers = "Intervals are over scenes, paired by scene and noise; the network is one."
    return Result(rows, decides, covers, {"shown": torch.stack(shown[:5])})


def jump(images: Tensor, hole: tuple[int, int, int, int]) -> float:
    """Mean absolute difference of the pixels on both sides of a box's border, in (N, 3, S, S)."""
    x0, y0, x1, y1 = hole
    sides = [
        images[..., y0:y1, x0] - images[..., y0:y1, x0 - 1],
        images[..., y0:y1, x1 - 1] - images[..., y0:y1, x1],
        images[..., y0, x0:x1] - images[..., y0 - 1, x0:x1],
        images[..., y1 - 1, x0:x1] - images[..., y1, x0:x1],
    ]
    return float(torch.cat([side.flatten() for side in sides]).abs().mean())


def plot(figure: Any, result: Result) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    bars(left, {way: result.rows[way] for way in WAYS}, "right, %", "right, %")
    bars(middle, result.rows, "jump at the border", "jump at the border, of [-1, 1]")
    middle.set_xticks(range(3), ["trained", "replaced", "render"], fontsize=8)
    shown = result.data["shown"].clamp(-1, 1).add(1).div(2)
    right.imshow(torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1).permute(1, 2, 0).numpy())
    right.set_xticks([SIZE * (i + 0.5) for i in range(3)], ["render", "trained", "replaced"], fontsize=8)
    right.set_yticks([])


if __name__ == "__main__":
    main(CLAIM, run, plot)
