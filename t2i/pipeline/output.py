"""What a call gives back: pictures that know how they were made, and the recipe in one, read again.

N pictures · D width of CLIP embeddings
"""

import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import DataError, UsageError, quoted
from t2i.core.paths import path_of
from t2i.io.images import save_image
from t2i.io.provenance import SAVED, check_extension, read_recipe

ALWAYS = {"seed", "steps", "guidance", "sampler", "stop_after", "max_batch"}
"""Arguments that every recipe holds."""


class Progress(NamedTuple):
    """What a callback sees after a step: `preview()` is the model's present guess as PIL pictures.

    `step` counts from 1 to `num_steps` again for every chunk of a batch, and in a prior for every candidate.
    """

    stage: str
    step: int
    num_steps: int
    preview: Callable[[], list[Image]]


Callback = Callable[[Progress], None]


@dataclass
class Output:
    """Pictures and everything needed to make them again.

    `embeddings` (N, D) are the CLIP image embeddings, where there are any; `timings` are seconds by stage;
    `truncated[i]` tells that the prompt was longer than the model reads; `recipe` repeats the call, with one prompt,
    negative prompt, class and seed per picture: its lists are of pictures. Where prompts were upsampled, `prompt` is
    what was drawn, and `asked` are the words of the user.
    """

    images: list[Image]
    seeds: list[int]
    prompts: list[str]
    recipe: dict[str, Any]
    embeddings: Tensor | None = None
    timings: dict[str, float] = field(default_factory=dict)
    truncated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Image:
        return self.images[i]

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def recipe_of(self, i: int) -> dict[str, Any]:
        """The call that draws picture `i` exactly: of the group of `max_batch` pictures that it was drawn in, since
        float sums depend on a batch's size; `picture` is its place there."""
        arguments = self.recipe["arguments"]
        i, size = range(len(self.seeds))[i], arguments["max_batch"]
        first = i - i % size
        group = {key: value[first : first + size] for key, value in arguments.items() if isinstance(value, list)}
        if len(group.get("prompt", ())) == 1:
            group["prompt"] = group["prompt"][0]
        asked = {"asked": self.recipe["asked"][i]} if "asked" in self.recipe else {}
        return {**self.recipe, **asked, "arguments": {**arguments, **group}, "picture": i - first}

    def save(self, path: str | Path, which: Sequence[int] | None = None) -> list[Path]:
        """Write pictures with their recipes, as PNG, JPEG or WebP by the extension of `path`: there for one picture, to
        `name-0.png`, `name-1.png` … for several; in a new folder if need be.

        `which` are the pictures to write, all of them if None.
        """
        path = path_of(path, "the file")
        if not path.name:
            raise UsageError(f"the file to save in has no name: {quoted(str(path))}")
        check_extension(path, SAVED)
        try:
            numbers = range(len(self))
            which = numbers if which is None else [numbers[operator.index(i)] for i in which]
        except (TypeError, IndexError):
            wanted = f"a list of numbers from 0 to {len(self) - 1}"
            raise UsageError(f"which must be {wanted}, got {quoted(which)}") from None
        paths = [path] if len(which) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in which]
        for i, target in zip(which, paths, strict=True):
            save_image(self.images[i], target, self.recipe_of(i))
        return paths


def recipe_in(path: Path) -> dict[str, Any]:
    """The recipe in a picture, if it has the form that `Output.recipe_of` gives it, or DataError; UsageError for one
    that a call alone does not repeat."""
    recipe = read_recipe(path)
    if isinstance(task := recipe.get("task"), str):
        raise UsageError(f"{path} was made from another picture ({task}); a recipe alone does not repeat that")
    arguments, picture = recipe.get("arguments"), recipe.get("picture")
    seeds = arguments.get("seed") if isinstance(arguments, dict) and arguments.keys() >= ALWAYS else None
    if (
        not isinstance(seeds, list)
        or not isinstance(picture, int)
        or not 0 <= picture < len(seeds)
        or not all(isinstance(recipe.get(key), str) for key in ("model", "weights", "torch", "device", "dtype"))
        or not isinstance(recipe.get("preset", ""), str)
        or not isinstance(recipe.get("asked", ""), str)
    ):
        raise DataError(f"{path}: its recipe is not one of this version of t2i")
    return recipe


def check_repeatable(recipe: Mapping[str, Any], takes: Collection[str], weights: str, path: Path | None) -> None:
    """DataError if a recipe has arguments that a recipe of the model's calls does not hold; a warning where a repeated
    picture may not be the same, as with other `weights`."""
    for name in recipe["arguments"]:
        if name not in takes:
            raise DataError(f"{path}: its recipe has an argument {quoted(name)}, which none of this model holds")
    if recipe["weights"] != weights:
        warnings.warn("these are not the weights that drew this picture, so it will be another", stacklevel=2)
    if recipe["torch"] != torch.__version__:
        warnings.warn(f"drawn with torch {recipe['torch']}, this is {torch.__version__}: bits may differ", stacklevel=2)
