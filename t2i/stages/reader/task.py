"""Training the reader on renders: the scene behind every picture is known, so every target is exact.

B batch · H W pixels · G cells along a side of the output grid · M objects
"""

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Task
from t2i.data.augment.degrade import gaussian_blur
from t2i.data.shapes.scene import Box, Scene, truth
from t2i.stages.reader.model import Detection, Reader, ReaderConfig

NEAR = 0.1  # picture widths: how far a box's middle may be from the truth


class ReaderOptions(Config):
    """How the renders are spoilt so that drawn pictures, which are never as clean, are read as well.

    Each of the three is drawn evenly from 0 to its bound, for half of the pictures: `blur` is the standard deviation of
    a Gaussian in pixels, `noise` that of the noise added (pictures span 2), `light` the change of contrast and of
    brightness. `blank` is the share of pictures that show nothing at all. `spread` is the standard deviation of a peak
    of the target heatmap, in cells.
    """

    blur: float = Field(default=1.0, ge=0)
    noise: float = Field(default=0.12, ge=0)
    light: float = Field(default=0.12, ge=0)
    blank: float = Field(default=0.04, ge=0, le=1)
    spread: float = Field(default=0.9, gt=0)


class ReaderTask(Task):
    """Trains a `Reader` on the source `shapes`, which gives every picture with its `scene`."""

    keys = ("image", "scene")
    model: Reader

    def __init__(self, model: Reader, options: ReaderOptions = ReaderOptions()) -> None:
        super().__init__(model)
        self.options = options

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts, each (B,): `heat`, `place` (offset and extent), `names` (raised, shape and colour)."""
        image, scenes = batch["image"], things_of(batch)
        if self.model.training:
            image, emptied = empty(image, Streams(batch["seed"], "blank"), self.options.blank)
            image, mirrored = spoil(image, Streams(batch["seed"], "reader"), self.options)
            scenes = [
                [] if e else [mirror(t) if m else t for t in things]
                for things, e, m in zip(scenes, emptied, mirrored, strict=True)
            ]
        maps = self.model(image)
        with torch.autocast(image.device.type, enabled=False):
            aim = targets(scenes, self.model.config, maps["heat"].shape[-1], self.options.spread)
            return losses(maps, {name: upload(value, image.device) for name, value in aim.items()})

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Shares of held-out `objects` and of whole `pictures` that are read without a fault."""
        return accuracy(self.model.read(batch["image"]), things_of(batch))


def things_of(batch: Batch) -> list[list[Detection]]:
    """The things of every picture, from the JSON text of its scene."""
    return [listed(Scene.from_dict(json.loads(text))) for text in batch["scene"]]


def listed(scene: Scene) -> list[Detection]:
    """What a faultless reader says of a scene."""
    things = zip(scene.things, truth(scene), strict=True)
    return [Detection(t.shape, t.colour, Box(*fact["box"]), t.support is not None) for t, fact in things]


def mirror(thing: Detection) -> Detection:
    """The same object in the picture's mirror image."""
    box = thing.box
    return thing._replace(box=Box(1 - box.x1, box.y0, 1 - box.x0, box.y1))


def empty(image: Tensor, streams: Streams, share: float) -> tuple[Tensor, list[bool]]:
    """Pictures (B, 3, H, W), some of them replaced by one colour or by one that fades into another; and which."""
    chance = streams.uniform(7)  # (B, 7)
    chosen = chance[:, 0] < share
    top, bottom = (2 * chance[:, 1:, None, None] - 1).chunk(2, dim=1)  # (B, 3, 1, 1) each
    bottom = torch.where(chance[:, :1, None, None] < share / 2, top, bottom)
    fade = torch.lerp(top, bottom, torch.linspace(0, 1, image.shape[2])[:, None])  # (B, 3, H, 1)
    return torch.where(
        upload(chosen, image.device)[:, None, None, None], upload(fade, image.device), image
    ), chosen.tolist()


def spoil(image: Tensor, streams: Streams, options: ReaderOptions) -> tuple[Tensor, list[bool]]:
    """Pictures (B, 3, H, W) mirrored, blurred, noisy and in other light, each by chance; and which are mirrored.

    Every number is drawn on the CPU; nothing is read back from the pictures' device."""
    chance = streams.uniform(8)  # (B, 8)
    mirrored = chance[:, 0] < 0.5
    used = (chance[:, 1:4] < 0.5) * chance[:, 4:7]  # (B, 3)
    blur, noise, light = (used * used.new_tensor([options.blur, options.noise, options.light])).unbind(dim=1)
    gain = 1 + light * (2 * chance[:, 7] - 1)
    shift = light * torch.cos(50 * chance[:, 7])  # another number as good as random
    numbers = upload(torch.stack([mirrored, blur, noise, gain, shift]), image.device)  # (5, B)
    flip, _, strength, gain, shift = numbers[:, :, None, None, None]  # (B, 1, 1, 1) each
    image = gaussian_blur(torch.where(flip > 0, image.flip(-1), image), numbers[1].clamp(min=0.1), 7)
    noise_map = upload(streams.normal(*image.shape[1:]), image.device)
    return (image * gain + shift + strength * noise_map).clamp(-1, 1), mirrored.tolist()


def targets(
    scenes: Sequence[Sequence[Detection]], config: ReaderConfig, cells: int, spread: float
) -> dict[str, Tensor]:
    """What the maps should be: `heat` (B, 1, G, G) with peaks of exactly 1, and per cell, of the nearest peak's object,
    `offset` and `extent` (B, 2, G, G), `raised` (B, 1, G, G), `shape` and `colour` (B, G, G) as indices."""
    size = (len(scenes), cells, cells)
    heat, raised, offset, extent = (torch.zeros(size[0], k, *size[1:]) for k in (1, 1, 2, 2))
    shape, colour = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    middle = torch.arange(cells) + 0.5
    for i, things in enumerate(scenes):
        for thing in things:
            x, y = thing.x * cells, thing.y * cells
            column, row = (min(max(int(v), 0), cells - 1) for v in (x, y))
            away = (middle - middle[column])[None, :] ** 2 + (middle - middle[row])[:, None] ** 2  # (G, G)
            bump = torch.exp(-away / (2 * spread**2))
            own = bump > heat[i, 0]
            heat[i, 0] = torch.where(own, bump, heat[i, 0])
            offset[i, 0] = torch.where(own, x - middle[None, :], offset[i, 0])
            offset[i, 1] = torch.where(own, y - middle[:, None], offset[i, 1])
            width, height = thing.box.x1 - thing.box.x0, thing.box.y1 - thing.box.y0
            extent[i, :, own] = torch.tensor([width, height]).mul(cells).log()[:, None]
            raised[i, 0, own] = float(thing.raised)
            shape[i, own], colour[i, own] = config.shapes.index(thing.shape), config.colours.index(thing.colour)
    return {"heat": heat, "offset": offset, "extent": extent, "raised": raised, "shape": shape, "colour": colour}


def losses(maps: dict[str, Tensor], aim: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zhou et al. 2019: equation 1 for the heatmap; L1 and cross-entropies elsewhere, weighted by the target.

    Sums over the objects of a picture, so that every object of a batch counts the same."""
    heat, logits = aim["heat"], maps["heat"]  # (B, 1, G, G)
    p = logits.sigmoid()
    found = -F.logsigmoid(logits) * (1 - p) ** 2
    silent = -F.logsigmoid(-logits) * p**2 * (1 - heat) ** 4
    heat_loss = torch.where(heat == 1, found, silent).sum(dim=(1, 2, 3))
    weight = torch.where(heat[:, 0] > 0.3, heat[:, 0] / 3, 0.0)  # (B, G, G), about 1 in all for each object
    place = sum((maps[k] - aim[k]).abs().sum(dim=1) for k in ("offset", "extent"))
    names = F.binary_cross_entropy_with_logits(maps["raised"], aim["raised"], reduction="none")[:, 0]
    names = names + sum(F.cross_entropy(maps[k], aim[k], reduction="none") for k in ("shape", "colour"))
    place, names = ((x * weight).sum(dim=(1, 2)) for x in (place, names))
    loss = heat_loss + 0.3 * place + names
    return {"loss": loss, "heat": heat_loss.detach(), "place": place.detach(), "names": names.detach()}


def match(found: Sequence[Detection], things: Sequence[Detection]) -> list[Detection | None]:
    """For every thing the detection of its shape and colour within `NEAR` of its middle, nearest pairs first."""
    pairs = sorted(
        (max(abs(f.x - t.x), abs(f.y - t.y)), i, j)
        for i, t in enumerate(things)
        for j, f in enumerate(found)
        if (f.shape, f.colour) == (t.shape, t.colour)
    )
    matched: dict[int, int] = {}
    for distance, i, j in pairs:
        if distance <= NEAR and i not in matched and j not in matched.values():
            matched[i] = j
    return [found[matched[i]] if i in matched else None for i in range(len(things))]


def accuracy(readings: Sequence[Sequence[Detection]], scenes: Sequence[Sequence[Detection]]) -> dict[str, float]:
    """How well pictures were read, as shares of 1.

    `objects`: things seen with their shape, colour and place, where every detection too many counts as one more fault.
    `raised`: of those, whether they stand on another is told rightly. `pictures`: everything is right and nothing is
    too many.
    """
    right = footing = total = whole = 0
    for found, things in zip(readings, scenes, strict=True):
        matched = match(found, things)
        seen = sum(m is not None for m in matched)
        stands = sum(m is not None and m.raised == t.raised for m, t in zip(matched, things, strict=True))
        right, footing, total = right + seen, footing + stands, total + max(len(things), len(found))
        whole += stands == len(things) == len(found)
    return {
        "objects": right / max(1, total),
        "raised": footing / max(1, right),
        "pictures": whole / max(1, len(scenes)),
    }
