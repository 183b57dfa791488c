"""The form of a call to a pipeline: what goes in is checked here, what comes out knows how it was made.

N pictures · D width of CLIP embeddings
"""

import inspect
import operator
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from t2i.core.errors import DataError, NonFiniteError, UsageError, did_you_mean
from t2i.core.types import Tokenizer
from t2i.diffusion.samplers import SAMPLERS
from t2i.diffusion.sampling import Sampling
from t2i.io.images import read_recipe, save_png
from t2i.pipeline.inputs import Known, Latent, Start

MAX_PROMPT = 2000  # characters
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


class Plan(NamedTuple):
    """`sampling` of the stages that draw, in order, and how strongly parts that do not draw steer, by part."""

    sampling: dict[str, Sampling]
    steering: dict[str, float]


@dataclass
class Call:
    """One call, resolved: every row is one picture.

    `rows` holds what each is drawn from, by the name of the argument; `sampling` and `steering` as in `Plan`; `brought`
    is a picture of which a part stays, or from which drawing begins, or what pictures were taken apart into, or
    embeddings (N, D).
    """

    rows: dict[str, list[Any]]
    seeds: list[int]
    sampling: dict[str, Sampling]
    steering: dict[str, float]
    max_batch: int
    callback: Callback | None
    bar: tqdm
    brought: Known | Start | Latent | Tensor | None = None
    max_tile: int | None = None
    timings: dict[str, float] = field(default_factory=dict)


@dataclass
class Output:
    """Pictures and everything needed to make them again.

    `embeddings` (N, D) are the CLIP image embeddings, where there are any; `timings` are seconds by stage;
    `truncated[i]` tells that the prompt was longer than the model reads; `recipe` repeats the call, with one prompt,
    negative prompt, class and seed per picture: its lists are of pictures.
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
        return {**self.recipe, "arguments": {**arguments, **group}, "picture": i - first}

    def save(self, path: str | Path, which: Sequence[int] | None = None) -> list[Path]:
        """Write PNGs with their recipes: `path` for one picture, `name-0.png`, `name-1.png` … for several; in a
        new folder if need be.

        `which` are the pictures to write, all of them if None.
        """
        path = Path(path)
        which = range(len(self)) if which is None else which
        paths = [path] if len(which) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in which]
        for i, target in zip(which, paths, strict=True):
            save_png(self.images[i], target, self.recipe_of(i))
        return paths


def recipe_in(path: Path) -> dict[str, Any]:
    """The recipe in a PNG, if it has the form that `Output.recipe_of` gives it, or DataError; UsageError for one that a
    call alone does not repeat."""
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
    ):
        raise DataError(f"{path}: its recipe is not one of this version of t2i")
    return recipe


def check_repeatable(recipe: Mapping[str, Any], pipe: Any, path: Path | None) -> None:
    """DataError if a recipe is for another kind of model; a warning where a repeated picture may not be the same."""
    if not recipe["arguments"].keys() <= inspect.signature(pipe.__call__).parameters.keys():
        raise DataError(f"{path}: its recipe is not one of this version of t2i")
    if recipe["weights"] != pipe.weights:
        warnings.warn("these are not the weights that drew this picture, so it will be another", stacklevel=2)
    if recipe["torch"] != torch.__version__:
        warnings.warn(f"drawn with torch {recipe['torch']}, this is {torch.__version__}: bits may differ", stacklevel=2)


def step_bar(progress: bool, total: int | None = None) -> tqdm:
    """A bar of steps on stderr, where that is a terminal or a notebook; none without `progress`."""
    return tqdm(total=total, disable=None if progress else True, unit="step", leave=False)


def check_finite(stage: str, x: Tensor) -> Tensor:
    """`x`, or NonFiniteError that names the stage."""
    if not torch.isfinite(x).all():
        raise NonFiniteError(f"stage {stage!r} produced values that are not finite; try dtype='float32'")
    return x


def chunks(count: int, group: int, size: int) -> list[slice]:
    """Rows 0 … count-1 in groups of `group`, each cut into parts of `size` from its own start, at least 1.

    What a group is cut into does not depend on the groups before it, so it can be drawn again alone.
    """
    size = min(max(size, 1), group)
    return [
        slice(i, min(i + size, first + group, count))
        for first in range(0, count, group)
        for i in range(first, min(first + group, count), size)
    ]


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1, or UsageError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def seeds_of(seed: Any, count: int) -> list[int]:
    """One seed per picture from one number, a list, or nothing."""
    if seed is None:
        seed = secrets.randbelow(2**31)
    several = isinstance(seed, Iterable)
    try:
        seeds = [operator.index(s) for s in (seed if several else [seed])]
    except TypeError:
        raise UsageError(f"a seed must be a whole number, or a list with one for each picture, got {seed!r}") from None
    if not several:
        return [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise UsageError(f"{len(seeds)} seeds for {count} pictures; give one whole number, or one for each")
    return seeds


def classes_of(classes: Any, num_classes: int | None, names: Sequence[str]) -> list[int] | None:
    """Labels from one class or several, each a number or one of `names`; None for None."""
    if classes is None:
        return None
    if num_classes is None:
        raise UsageError(f"this model takes neither a prompt nor a class, got {classes!r}")
    several = classes if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]
    labels = []
    for value in several:
        if isinstance(value, str) and value in names:  # also names that are numbers, as folders may have
            labels.append(list(names).index(value))
            continue
        try:
            label = operator.index(int(value) if isinstance(value, str) else value)
        except ValueError:
            hint = did_you_mean(value, names) if names else "; this model's classes have no names"
            raise UsageError(f"unknown class {value!r}{hint}") from None
        except TypeError:
            raise UsageError(f"a class must be a whole number or a name, got {value!r}") from None
        if isinstance(value, bool) or not 0 <= label < num_classes:
            raise UsageError(f"class {value!r} is out of range: this model knows 0 … {num_classes - 1}")
        labels.append(label)
    if not labels:
        raise UsageError("no class given")
    return labels


def check_guidance(stage: str, value: Any, guided: Iterable[str], default: float = 1.0) -> float:
    """A scale for `stage`; stages that are not `guided` know none but 1."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1000:
        raise UsageError(f"guidance of {stage}: expected a number from 0 to 1000, got {value!r}")
    if stage not in guided and value != 1:
        raise UsageError(f"guidance of {stage}: this stage is not guided, only {' and '.join(guided)} are")
    return float(value)


def check_sampler(stage: str, value: Any) -> str:
    """The name of a sampler."""
    if str(value) not in SAMPLERS:
        known = f"; known are {', '.join(SAMPLERS)}{did_you_mean(value, SAMPLERS)}"
        raise UsageError(f"sampler of {stage}: unknown {value!r}{known}")
    return str(value)


def prompts_of(
    prompt: str | Sequence[str], tokenizer: Tokenizer, *others: Tokenizer, negative: bool = False
) -> tuple[list[str], list[bool]]:
    """Prompts as a list, and which of them are longer than one of the tokenisers reads; warns about those, and about
    words that one of them does not know.

    Negative prompts may be empty.
    """
    what = "negative prompt" if negative else "prompt"
    if not isinstance(prompt, str | Sequence):
        raise UsageError(f"a {what} must be a string or a list of them, got {type(prompt).__name__}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UsageError(f"no {what} given")
    for text in prompts:
        check_text(what, text, may_be_empty=negative)
        if unknown := [word for reader in (tokenizer, *others) for word in reader.unknown(text)]:
            warnings.warn(f"the model does not know: {', '.join(dict.fromkeys(unknown))}", stacklevel=4)
    readers = (tokenizer, *others)
    truncated = [any(reader.truncated(text) for reader in readers) for text in prompts]
    for text, cut in zip(prompts, truncated, strict=True):
        if cut:
            room = min(reader.room for reader in readers)
            warnings.warn(f"only the first {room} tokens are read of: {text[:60]}…", stacklevel=4)
    return prompts, truncated


def sentences(
    prompt: str | Sequence[str],
    negative: str | Sequence[str] | None,
    num_images_per_prompt: int,
    plan: Plan,
    *tokenizers: Tokenizer,
) -> tuple[dict[str, list[Any]], list[bool]]:
    """Rows of a call for pipelines that read sentences, and which of them are longer than what is read."""
    prompts, truncated = prompts_of(prompt, *tokenizers)
    negatives, _ = prompts_of("" if negative is None else negative, *tokenizers, negative=True)
    if len(negatives) not in (1, len(prompts)):
        raise UsageError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
    if any(negatives) and all(chosen.guidance == 1 for chosen in plan.sampling.values()):
        warnings.warn("a negative prompt says nothing where guidance is 1", stacklevel=3)
    num = whole("num_images_per_prompt", num_images_per_prompt)
    negatives *= len(prompts) // len(negatives)
    rows = {"prompt": repeated(prompts, num), "negative_prompt": repeated(negatives, num)}
    return rows, repeated(truncated, num)


def repeated(values: Sequence[Any], num: int) -> list[Any]:
    """Every value `num` times in a row."""
    return [value for value in values for _ in range(num)]


def by_stage(what: str, given: Any, stages: Sequence[str], settings: Mapping[str, Any], check: Callable) -> dict:
    """Values of `steps`, `guidance` or `sampler` for `stages`: `settings`, overridden by one value for all or a dict by
    stage. One guidance is for the stages whose settings have one."""
    for name in given if isinstance(given, Mapping) else ():
        if name not in stages:
            raise UsageError(
                f"{what}: unknown stage {name!r}; stages are {', '.join(stages)}{did_you_mean(name, stages)}"
            )
    values = {name: settings.get(name) for name in stages}
    if given is not None:
        meant = [name for name in stages if what != "guidance" or values[name] is not None]
        values |= dict(given) if isinstance(given, Mapping) else dict.fromkeys(meant, given)
    return {name: check(name, value) for name, value in values.items()}


def check_text(what: str, text: object, *, may_be_empty: bool = False) -> None:
    """UsageError for what no model can read; `what` is its name there."""
    if not isinstance(text, str):
        raise UsageError(f"a {what} must be a string, got {type(text).__name__}")
    if not text.strip() and not may_be_empty:
        raise UsageError(f"the {what} is empty")
    if len(text) > MAX_PROMPT:
        raise UsageError(f"the {what} has {len(text):,} characters; the limit is {MAX_PROMPT:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} is not valid UTF-8: {text[:60]!a}") from None
