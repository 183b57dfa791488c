"""What every pipeline shares: loading and saving a folder of stages, devices and precision, and the form of a call.

The stories themselves are in `pipelines/`, one readable file per paper.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from t2i import __version__
from t2i.errors import DataError, NonFiniteError, UsageError, did_you_mean
from t2i.hub import resolve
from t2i.images import save_png, to_pil
from t2i.registry import load_stage, save_stage
from t2i.storage import fingerprint, read_json, write
from t2i.types import Prediction, StepCallback, Tokenizer

MAX_PROMPT = 2000  # characters
DTYPES = ("float32", "bfloat16", "float16")

KINDS = {"dalle2": "DALLE2"}
"""Pipelines by the name in `model_index.json`: module of `t2i.pipelines` → class."""


class Progress(NamedTuple):
    """What a callback sees after a step: `preview()` is the model's present guess as PIL pictures.

    `step` counts from 1 to `num_steps` again for every chunk of a batch, and in a prior for every candidate.
    """

    stage: str
    step: int
    num_steps: int
    preview: Callable[[], list[Image]]


@dataclass
class Output:
    """Pictures and everything needed to make them again.

    `embeddings` (N, D) are the CLIP image embeddings; `timings` are seconds by stage; `truncated[i]` tells that the
    prompt was longer than the model reads; `recipe` repeats the call, with one prompt, negative prompt and seed per
    picture.
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
        group = {
            key: arguments[key] and arguments[key][first : first + size]
            for key in ("prompt", "negative_prompt", "seed")
        }
        if len(group["prompt"]) == 1:
            group["prompt"] = group["prompt"][0]
        return {**self.recipe, "arguments": {**arguments, **group}, "picture": i - first}

    def save(self, path: str | Path, which: Sequence[int] | None = None) -> list[Path]:
        """Write PNGs with their recipes: `path` for one picture, `name-0.png`, `name-1.png` … for several.

        `which` are the pictures to write, all of them if None.
        """
        path = Path(path)
        which = range(len(self)) if which is None else which
        paths = [path] if len(which) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in which]
        for i, target in zip(which, paths, strict=True):
            save_png(self.images[i], target, self.recipe_of(i))
        return paths


class Pipeline:
    """Stages by name, on one device. Use `Pipeline.from_pretrained`; subclasses tell what a call does.

    Args:
        parts: the stages, such as `{"clip": …, "prior": …, "decoder": …}`; the last ones may be missing.
        settings: what differs from `defaults`; saved in `model_index.json`.
        source: the name or folder the pipeline came from, for recipes; empty if it was never saved.

    `weights` is the fingerprint of the files it was read from or written to.

    Raises UsageError for stages or settings that the chain does not have, and for a chain with a hole.
    """

    kind: ClassVar[str]
    drawing: ClassVar[tuple[str, ...]]
    """Names of the stages that draw, in order."""
    places: ClassVar[dict[str, str]]
    """Every place in the chain, in order, and the kind of stage that fills it."""
    defaults: ClassVar[dict[str, dict[str, Any]]]
    """What `steps`, `guidance` and `sampler` of every stage are unless a model says otherwise."""

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        self.parts = {name: parts[name] for name in self._chain(parts)}
        self.settings = self._completed(settings)
        self.source, self.weights = source, ""
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path = "shapes", *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> "Pipeline":
        """Open a bundled model by name, or a folder written by `save_pretrained`.

        Args:
            device: "auto" takes the GPU if there is one.
            dtype: precision of the networks' matrix products; "auto" is float32. bfloat16 and float16 are faster where
                a machine has units for them, but a picture then depends a little on the batch that it is drawn in.
                Weights, norms, schedules and outputs stay float32.

        Raises:
            UsageError: no such name, folder, device or dtype. DataError: a part is missing, truncated or does not fit.
        """
        folder = resolve(name_or_folder)
        device, dtype = _device(device), _dtype(dtype)
        path = folder / "model_index.json"
        index = read_json(path)
        kind = str(index.get("_class_name")) if isinstance(index, dict) else f"a {type(index).__name__}"
        if kind not in KINDS:
            raise DataError(f"{path}: unknown kind of pipeline {kind!r}; known: {', '.join(KINDS)}")
        cls: type[Pipeline] = getattr(import_module(f"t2i.pipelines.{kind}"), KINDS[kind])
        settings = index.pop("settings", None)
        stages = {name: folder / name for name, value in index.items() if isinstance(value, list)}
        try:
            pipe = cls.assemble(stages, settings)
        except UsageError as error:
            raise DataError(f"{path}: {error}") from error
        pipe.source = str(folder.resolve() if folder == Path(name_or_folder) else name_or_folder)
        pipe.weights = fingerprint(folder)
        return pipe.to(device, dtype)

    @classmethod
    def assemble(
        cls, folders: Mapping[str, str | Path], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Self:
        """Chain stages that were trained on their own: `DALLE2.assemble({"clip": "runs/clip", "prior": …})`.

        Args:
            folders: stage folders by the name of their place in the chain; later stages may be missing.
            settings: what differs from the class's own `defaults`.

        Raises UsageError for a place that the chain does not have and for a hole in it, DataError for a folder that
        holds another stage and for stages that do not fit together.
        """
        parts = {name: load_stage(folders[name], expect=cls.places[name]) for name in cls._chain(folders)}
        return cls(parts, {} if settings is None else settings)

    def to(self, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> Self:
        """Move every stage; "auto" as in `from_pretrained`."""
        self.device, self.dtype = _device(device), _dtype(dtype)
        for part in self.parts.values():
            part.to(self.device).to(memory_format=torch.channels_last)
        return self

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`.

        `dtype` is the type of the stored weights, None keeps them as they are.
        """
        folder = Path(folder)
        index: dict[str, Any] = {"_class_name": self.kind, "_t2i_version": __version__}
        for name, part in self.parts.items():
            save_stage(folder / name, self.places[name], part, dtype=dtype)
            index[name] = ["t2i", self.places[name]]
        index["settings"] = self.settings
        write(folder / "model_index.json", json.dumps(index, indent=2).encode() + b"\n")
        if dtype is None:
            self.source, self.weights = str(folder.resolve()), fingerprint(folder)

    def __call__(self, prompt: str | Sequence[str], **arguments: Any) -> "Output":
        """Draw; every kind of pipeline says what else it takes."""
        raise TypeError(f"{type(self).__name__} does not draw; open a model with Pipeline.from_pretrained")

    @classmethod
    def _chain(cls, names: Collection[str]) -> list[str]:
        """`names` in the order of the chain; UsageError for one that it does not have, and for a hole."""
        places = list(cls.places)
        for name in names:
            if name not in places:
                raise UsageError(f"unknown stage {name!r}{did_you_mean(name, places)}; stages are {', '.join(places)}")
        last = max(places.index(name) for name in (cls.drawing[0], *names))
        chain = places[: last + 1]
        if missing := [name for name in chain if name not in names]:
            raise UsageError(f"the chain {' → '.join(chain)} lacks {', '.join(missing)}")
        return chain

    def _completed(self, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """`defaults` of the stages that are there, overridden by `given`."""
        if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
            raise UsageError(f"settings must hold values by stage for each of {', '.join(self.defaults)}, got {given}")
        for what in given:
            if what not in self.defaults:
                raise UsageError(f"unknown setting {what!r}{did_you_mean(what, self.defaults)}")
        return {
            what: {name: v for name, v in {**values, **given.get(what, {})}.items() if name in self.parts}
            for what, values in self.defaults.items()
        }

    # -- what a call needs ---------------------------------------------------------------------------------------------

    def choose(self, what: str, given: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Per-stage values of `steps`, `guidance` or `sampler`: defaults, overridden by one value for all or a dict by
        stage."""
        stages = [name for name in self.drawing if name in self.parts]
        for name in given if isinstance(given, Mapping) else ():
            if name not in stages:
                raise UsageError(
                    f"{what}: unknown stage {name!r}{did_you_mean(name, stages)}; stages are {', '.join(stages)}"
                )
        values = {name: self.settings[what].get(name) for name in stages}
        if given is not None:
            guided = [name for name in stages if what != "guidance" or values[name] is not None]
            values |= dict(given) if isinstance(given, Mapping) else dict.fromkeys(guided, given)
        return {name: check(name, value) for name, value in values.items()}

    def check_pictures(self, stop_after: str | None = None) -> None:
        """UsageError if a call that ends with this stage would draw no picture."""
        last = stop_after or list(self.parts)[-1]
        if last in self.parts and self.places[last] == "prior":
            raise UsageError("the prior draws embeddings, not pictures: stop after decoder or later")

    def check_prompts(
        self, prompt: str | Sequence[str], tokenizer: Tokenizer, *others: Tokenizer, negative: bool = False
    ) -> tuple[list[str], list[bool]]:
        """Prompts as a list, and which of them are longer than the tokeniser reads; warns about words that it or
        another does not know.

        Negative prompts may be empty.
        """
        what = "negative prompt" if negative else "prompt"
        if not isinstance(prompt, str | Sequence):
            raise UsageError(f"a {what} must be a string or a list of them, got {type(prompt).__name__}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UsageError(f"no {what} given")
        for text in prompts:
            _check_text(what, text, may_be_empty=negative)
            if unknown := [word for reader in (tokenizer, *others) for word in reader.unknown(text)]:
                warnings.warn(f"the model does not know: {', '.join(dict.fromkeys(unknown))}", stacklevel=3)
        truncated = [tokenizer.truncated(text) for text in prompts]
        for text, cut in zip(prompts, truncated, strict=True):
            if cut:
                warnings.warn(f"only the first {tokenizer.context - 2} tokens are read of: {text[:60]}…", stacklevel=3)
        return prompts, truncated

    @contextmanager
    def running(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Precision and timing around one stage of a call."""
        start = perf_counter()
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timings[stage] = timings.get(stage, 0.0) + perf_counter() - start

    def watch(self, stage: str, bar: tqdm, callback: Callable[[Progress], None] | None) -> StepCallback:
        """A sampler's callback that advances the bar and calls the user's function."""
        bar.set_description(stage)

        def on_step(step: int, num_steps: int, x_t: Tensor, prediction: Prediction) -> None:
            bar.update()
            if callback is not None:
                callback(Progress(stage, step, num_steps, lambda: to_pil(prediction.x_0) if x_t.ndim == 4 else []))

        return on_step


def check_finite(stage: str, x: Tensor) -> Tensor:
    """`x`, or NonFiniteError that names the stage."""
    if not torch.isfinite(x).all():
        raise NonFiniteError(f"stage {stage!r} produced values that are not finite; try dtype='float32'")
    return x


def _check_text(what: str, text: object, *, may_be_empty: bool) -> None:
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


def _device(device: str | torch.device) -> torch.device:
    """A device that works on this machine."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError):  # unknown, not compiled in, not a device
        raise UsageError(f"torch has no device {str(device)!r} on this machine; use auto, cpu or cuda") from None
    return torch.device(device)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise UsageError(f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}; use auto, {', '.join(DTYPES)}")
    return torch.float32 if name == "auto" else getattr(torch, name)
