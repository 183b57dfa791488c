"""Sets of pictures to measure: files, scenes of the shapes world, and what a model draws, a few at a time.

B pictures of a part · H W pixels
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams, mix
from t2i.data import shapes
from t2i.data.config import DataConfig
from t2i.data.framing import CropPolicy, framed
from t2i.data.opening import open_files
from t2i.data.scenes import VAL_SCENES
from t2i.data.source import MAX_RATIO, BadSample, Needs, pick_caption
from t2i.io.images import open_image, to_rgb
from t2i.pipeline.base import Pipeline
from t2i.pipeline.cost import check_pictures


class Part(NamedTuple):
    """Some pictures of a set: their numbers in it, uint8 (3, H, W) each, captions, empty where there are none, and what
    could not be read, with its reason."""

    indices: list[int]
    images: list[Tensor]
    captions: list[str]
    bad: list[tuple[str, str]]


class PictureSet(Protocol):
    """Pictures that can be had in any order, always the same ones.

    Attributes:
        name: for people. num: how many. captioned: whether there are captions.
        settings: what the pictures depend on, JSON-able; two sets are one where this and `name` are equal.
    """

    name: str
    num: int
    captioned: bool
    settings: dict[str, Any]

    def load(self, first: int, last: int) -> Part:
        """Numbers `first` to `last` - 1."""


class Files:
    """A folder of pictures, or shards. Pictures are 8-bit RGB as they are, or framed as data is.

    Args:
        num: the first ones by name, at most; None for all.
        size: side of a square that pictures are framed to, see `t2i.data.framing`; None for as they are.
    """

    def __init__(
        self, src: str, num: int | None = None, size: int | None = None, policy: CropPolicy = "center"
    ) -> None:
        self.source = open_files(src, DataConfig(source=src, size=size or 64, crop_policy=policy), Needs(("image",)))
        self.name, self.size, self.policy = src, size, policy
        self.num = len(self.source) if num is None else min(num, len(self.source))
        self.captioned = any(self._captions_of(i) for i in range(min(3, self.num)))
        framing = "as they are" if size is None else f"{policy} to {size}"
        mark = mix(*self.source.keys[: self.num])
        self.settings: dict[str, Any] = {"pictures": self.num, "framing": framing, "keys": f"{mark:016x}"}

    def load(self, first: int, last: int) -> Part:
        part = Part([], [], [], [])
        for index in range(first, last):
            try:
                data, captions = self.source.raw(index)
                image = self._framed(open_image(data), index)
            except (BadSample, DataError) as error:
                part.bad.append((self.source.keys[index], str(error)))
                continue
            part.indices.append(index)
            part.images.append(pixels(image))
            part.captions.append(self._picked(captions, index))
        return part

    def _framed(self, image: Image.Image, index: int) -> Image.Image:
        if max(image.size) > MAX_RATIO * min(image.size):
            raise BadSample("too narrow", f"{image.width}×{image.height}")
        if self.size is None:
            return image
        return framed(image, self.size, None, self.policy, Streams([index], "frame"))

    def _picked(self, captions: Mapping[str, Sequence[str]], index: int) -> str:
        some = {kind: lines for kind, lines in captions.items() if any(lines)}
        return pick_caption(some, {}, Streams([index], "caption")) if some else ""

    def _captions_of(self, index: int) -> bool:
        try:
            return bool(self._picked(self.source.raw(index)[1], index))
        except BadSample:
            return False


class Scenes:
    """Held-out scenes of the shapes world, with their short captions.

    Args:
        num_things: weights of scenes with one to four things; empty for those of training.
    """

    captioned = True

    def __init__(self, num: int, size: int = 64, seed: int = 0, num_things: Mapping[int, float] | None = None) -> None:
        self.name, self.num, self.size, self.seed = "shapes", num, size, seed
        self.things = dict(num_things or shapes.NUM_THINGS)
        self.settings: dict[str, Any] = {"pictures": num, "size": size, "seed": seed, "num_things": _keys(self.things)}

    def load(self, first: int, last: int) -> Part:
        batch = shapes.batch(self._seeds(first, last), self.size, num_things=self.things)
        images = ((batch["image"] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Part(list(range(first, last)), list(images), [c["short"] for c in batch["captions"]], [])

    def texts(self, first: int, last: int) -> list[str]:
        """Their captions, without rendering."""
        told = shapes.texts(self._seeds(first, last), num_things=self.things)
        return [captions["short"] for captions in told["captions"]]

    def _seeds(self, first: int, last: int) -> list[int]:
        return [(self.seed + i) | VAL_SCENES for i in range(first, last)]


class Drawn:
    """What a model draws: picture i of prompt i, over and over, or of class i, from seed + i.

    Args:
        prompts: sentences; None for the short captions of held-out scenes, so that each picture has its own.
        call: further arguments of the pipeline, such as `steps` and `guidance`.

    Raises UsageError for a call that draws no pictures, and for prompts where a model reads none.
    """

    def __init__(
        self,
        pipe: Pipeline,
        num: int,
        *,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.num, self.seed, self.call = pipe, num, seed, dict(call or {})
        self.call.setdefault("stop_after", pipe.judged)
        check_pictures(pipe, self.call["stop_after"])
        self.captioned = pipe.subject == "prompt"
        if prompts is not None and not self.captioned:
            raise UsageError(f"{pipe.source or 'this model'} draws {pipe.subject} and reads no prompts")
        self.prompts, self.scenes = prompts, Scenes(num, seed=seed)
        self.name = pipe.source or type(pipe).__name__
        plan, scales = pipe.planner.plan(self.call)  # type: ignore[arg-type]
        self.settings: dict[str, Any] = {
            "pictures": num,
            "weights": pipe.weights,
            "seed": seed,
            "prompts": "captions of held-out shapes" if prompts is None else f"{len(prompts)}, {mix(*prompts):016x}",
            "steps": {name: sampling.steps for name, sampling in plan.items()},
            "guidance": {**{name: sampling.guidance for name, sampling in plan.items()}, **scales},
            "call": {key: value for key, value in self.call.items() if key not in ("steps", "guidance")},
        }
        if not self.captioned:
            self.settings["prompts"] = "classes in turn" if getattr(pipe, "num_classes", None) else "none"

    def load(self, first: int, last: int) -> Part:
        draw: Any = self.pipe
        texts = [""] * (last - first)
        asked: list[Any] = []
        if self.captioned:
            texts = self._texts(first, last)
            asked = [texts]
        elif classes := getattr(self.pipe, "num_classes", None):
            asked = [[i % classes for i in range(first, last)]]
        many = {} if asked else {self.pipe.number: last - first}
        drawn = draw(*asked, seed=self.seed + first, progress=False, **many, **self.call)
        return Part(list(range(first, last)), [pixels(image) for image in drawn.images], texts, [])

    def _texts(self, first: int, last: int) -> list[str]:
        if self.prompts is None:
            return self.scenes.texts(first, last)
        return [self.prompts[i % len(self.prompts)] for i in range(first, last)]


def pixels(image: Image.Image) -> Tensor:
    """uint8 (3, H, W) of a picture of any mode."""
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


def _keys(weights: Mapping[int, float]) -> dict[str, float]:
    return {str(number): weight for number, weight in weights.items()}
