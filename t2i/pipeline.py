"""What every pipeline shares: loading and saving a folder of stages, devices and precision, and the form of a call.

The stories themselves are in `pipelines/`, one readable file per paper.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from t2i.precision import fast_bfloat16
from t2i.registry import load_stage, save_stage
from t2i.types import Prediction, StepCallback

MAX_PROMPT = 2000  # characters

KINDS = {"dalle2": "DALLE2"}
"""Pipelines by the name in `model_index.json`: module of `t2i.pipelines` → class."""


class Progress(NamedTuple):
    """What a callback sees after a step: `preview()` is the model's present guess as PIL pictures."""

    stage: str
    step: int
    num_steps: int
    preview: Callable[[], list[Image]]


@dataclass
class Output:
    """Pictures and everything needed to make them again.

    `seeds[i]` draws `images[i]` alone; `embeddings` (N, D) are the CLIP image embeddings; `timings` are seconds by
    stage; `truncated[i]` tells that the prompt was longer than the model reads; `recipe` repeats the call.
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
        """The call that draws picture `i` alone."""
        arguments = {
            **self.recipe["arguments"],
            "prompt": self.prompts[i],
            "seed": self.seeds[i],
            "num_images_per_prompt": 1,
        }
        return {**self.recipe, "arguments": arguments}

    def save(self, path: str | Path) -> list[Path]:
        """Write PNGs with their recipes: `path` for one picture, `name-0.png`, `name-1.png` … for several."""
        path = Path(path)
        paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self))]
        for i, (image, target) in enumerate(zip(self.images, paths, strict=True)):
            save_png(image, target, self.recipe_of(i))
        return paths


class Pipeline:
    """Stages by name, on one device. Use `Pipeline.from_pretrained`; subclasses tell what a call does.

    Args:
        parts: the stages, such as `{"clip": …, "prior": …, "decoder": …}`.
        settings: per-stage defaults of `steps`, `guidance` and `sampler`, saved in `model_index.json`.
        source: the name or folder the pipeline came from, for recipes.
    """

    kind: ClassVar[str]
    drawing: ClassVar[tuple[str, ...]]
    """Names of the stages that draw, in order."""
    places: ClassVar[dict[str, str]]
    """Every place in the chain and the kind of stage that fills it."""
    defaults: ClassVar[dict[str, dict[str, Any]]]
    """What `steps`, `guidance` and `sampler` are unless a model says otherwise."""

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        self.parts = dict(parts)
        self.settings = {key: dict(value) for key, value in settings.items()}
        self.source = source
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path = "shapes", *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> "Pipeline":
        """Open a bundled model by name, or a folder written by `save_pretrained`.

        Args:
            device: "auto" takes the GPU if there is one.
            dtype: precision of the networks' matrix products; "auto" takes bfloat16 where the machine is fast at it.
                Weights, norms, schedules and outputs stay float32.

        Raises:
            UsageError: no such name or folder. DataError: a part is missing, truncated or does not fit.
        """
        folder = resolve(name_or_folder)
        try:
            index = json.loads((folder / "model_index.json").read_text())
        except json.JSONDecodeError as error:
            raise DataError(f"{folder / 'model_index.json'}: not JSON ({error})") from error
        kind = index.get("_class_name")
        if kind not in KINDS:
            raise DataError(f"{folder}: unknown kind of pipeline {kind!r}; known: {', '.join(KINDS)}")
        cls: type[Pipeline] = getattr(import_module(f"t2i.pipelines.{kind}"), KINDS[kind])
        parts = {
            name: load_stage(folder / name, expect=value[1]) for name, value in index.items() if isinstance(value, list)
        }
        return cls(parts, index.get("settings", {}), str(name_or_folder)).to(device, dtype)

    @classmethod
    def assemble(
        cls, folders: Mapping[str, str | Path], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Self:
        """Chain stages that were trained on their own: `DALLE2.assemble({"clip": "runs/clip", "prior": …})`.

        Args:
            folders: stage folders by the name of their place in the chain; later stages may be missing.
            settings: what differs from the class's own `defaults`.

        Raises UsageError for a place that the chain does not have, DataError for a folder that holds another stage.
        """
        for name in folders:
            if name not in cls.places:
                raise UsageError(
                    f"unknown stage {name!r}{did_you_mean(name, cls.places)}; stages are {', '.join(cls.places)}"
                )
        parts = {name: load_stage(folders[name], expect=kind) for name, kind in cls.places.items() if name in folders}
        chosen = {
            what: {name: value for name, value in {**values, **(settings or {}).get(what, {})}.items() if name in parts}
            for what, values in cls.defaults.items()
        }
        return cls(parts, chosen)

    def to(self, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> Self:
        """Move every stage; "auto" as in `from_pretrained`."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if isinstance(dtype, str):
            names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
            if dtype != "auto" and dtype not in names:
                raise UsageError(f"unknown dtype {dtype!r}{did_you_mean(dtype, names)}; use auto, {', '.join(names)}")
            fast = torch.bfloat16 if fast_bfloat16(self.device) else torch.float32
            dtype = fast if dtype == "auto" else names[dtype]
        self.dtype = dtype
        for part in self.parts.values():
            part.to(self.device).to(memory_format=torch.channels_last)
        return self

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`."""
        folder = Path(folder)
        index: dict[str, Any] = {"_class_name": self.kind, "_t2i_version": __version__}
        for name, part in self.parts.items():
            kind = stage_kind(part)
            save_stage(folder / name, kind, part, dtype=dtype)
            index[name] = ["t2i", kind]
        index["settings"] = self.settings
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    def __call__(self, prompt: str | Sequence[str], **arguments: Any) -> "Output":
        """Draw; every kind of pipeline says what else it takes."""
        raise TypeError(f"{type(self).__name__} does not draw; open a model with Pipeline.from_pretrained")

    # -- what a call needs ---------------------------------------------------------------------------------------------

    def choose(self, what: str, given: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Per-stage values of `steps` or `guidance`: defaults, overridden by one value for all or a dict by stage."""
        stages = [name for name in self.drawing if name in self.parts]
        if isinstance(given, Mapping):
            for name in given:
                if name not in stages:
                    raise UsageError(
                        f"{what}: unknown stage {name!r}{did_you_mean(name, stages)}; stages are {', '.join(stages)}"
                    )
        values = {name: self.settings.get(what, {}).get(name) for name in stages}
        if given is not None:
            guided = [name for name in stages if what != "guidance" or values[name] is not None]
            values |= dict(given) if isinstance(given, Mapping) else dict.fromkeys(guided, given)
        return {name: check(name, value) for name, value in values.items()}

    def check_prompts(self, prompt: str | Sequence[str], tokenizer: Any) -> tuple[list[str], list[bool]]:
        """Prompts as a list, and which of them are longer than the tokeniser reads; warns about unknown words."""
        if not isinstance(prompt, str | Sequence):
            raise UsageError(f"a prompt must be a string or a list of them, got {type(prompt).__name__}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UsageError("no prompt given")
        for text in prompts:
            if not isinstance(text, str):
                raise UsageError(f"a prompt must be a string, got {type(text).__name__}")
            if not text.strip():
                raise UsageError("the prompt is empty")
            if len(text) > MAX_PROMPT:
                raise UsageError(f"the prompt has {len(text):,} characters; the limit is {MAX_PROMPT:,}")
            if unknown := tokenizer.unknown(text):
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


def stage_kind(part: nn.Module) -> str:
    """The registry's name of a stage's class, read off the folder that its module lives in."""
    return type(part).__module__.split(".")[2]
