"""What every pipeline shares: loading and saving a folder of stages, devices and precision, and the form of a call.

The stories themselves are in `pipelines/`, one readable file per paper.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from numbers import Integral
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2i.core.devices import device_of, dtype_of, memory_explained
from t2i.core.errors import DataError, UsageError, did_you_mean
from t2i.core.types import Prediction, StepCallback
from t2i.diffusion.sampling import Sampling, Steering
from t2i.diffusion.schedules import respaced_steps
from t2i.diffusion.tiles import SMALLEST
from t2i.hub.hub import presets, resolve
from t2i.io.files import read_json, write
from t2i.io.images import to_pil
from t2i.io.weights import fingerprint, stage_folders
from t2i.pipeline.inputs import Known, Latent, Start
from t2i.pipeline.request import (
    Call,
    Callback,
    Output,
    Plan,
    Progress,
    by_stage,
    check_finite,
    check_guidance,
    check_sampler,
    chunks,
    seeds_of,
    step_bar,
    whole,
)
from t2i.stages.registry import STAGES, load_stage, save_stage
from t2i.version import __version__

KINDS = {"dalle2": "DALLE2", "ddpm": "DDPM", "adm": "ADM", "glide": "GLIDE"}
"""Pipelines by the name in `model_index.json`: module of `t2i.pipelines` → class."""
UNCLIP = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
"""Pipelines of diffusers whose folders are opened as they are; the second has no prior."""


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
    subject: ClassVar[str]
    """Name of the argument that says what to draw."""
    number: ClassVar[str]
    """Name of the argument that says how many pictures of each."""
    drawing: ClassVar[tuple[str, ...]]
    """Names of the stages that draw, in order."""
    places: ClassVar[dict[str, str]]
    """Every place in the chain, in order, and the kind of stage that fills it."""
    alternatives: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Other kinds of stage that may fill a place instead."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Places that may be empty although later ones are filled."""
    defaults: ClassVar[dict[str, dict[str, Any]]]
    """What `steps`, `guidance` and `sampler` of every stage are unless a model says otherwise; with `candidates`, how
    often a stage samples to choose from."""
    steering: ClassVar[tuple[str, ...]] = ()
    """Parts that draw nothing and have a guidance: classifiers, CLIP."""
    temperature: ClassVar[dict[str, float]] = {}
    """Factor of the initial noise of a stage, where it is not 1."""

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        self.parts = {name: parts[name] for name in self._chain(parts)}
        self.settings = self._completed(settings)
        self.source, self.weights, self.preset = source, "", ""
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.offload = False

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path = "shapes",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        offload: bool = False,
        preset: str | None = None,
    ) -> "Pipeline":
        """Open a model by name (`t2i info` lists them; published ones are downloaded and converted on first use), or a
        folder written by `save_pretrained`, or one of diffusers' unCLIP pipelines as it is.

        Args:
            device: "auto" takes the GPU if there is one.
            dtype: precision of the networks' matrix products; "auto" is float32, of which torch's own settings say what
                a GPU makes (TF32 in convolutions unless they are changed). bfloat16 and float16 are faster where
                a machine has units for them, but a picture then depends a little on the batch that it is drawn in.
                Weights, norms, schedules and outputs stay float32.
            offload: as in `to`.
            preset: for DALL-E 2's chain, sample it as others do: "karlo", "diffusers", "laion" or "paper"; see
                `DALLE2.follow`. None for the model's own settings.

        Raises:
            UsageError: no such name, folder, device, dtype or preset.
            DataError: a part is missing, truncated or does not fit.
        """
        folder = resolve(name_or_folder)
        device, dtype = device_of(device), dtype_of(dtype)
        path = folder / "model_index.json"
        index = read_json(path)
        kind = str(index.get("_class_name")) if isinstance(index, dict) else f"a {type(index).__name__}"
        if kind not in (*KINDS, *UNCLIP):
            raise DataError(f"{path}: unknown kind of pipeline {kind!r}; known: {', '.join((*KINDS, *UNCLIP))}")
        settings = index.pop("settings", None)
        stages = stage_folders(folder, index)
        try:
            if kind in UNCLIP:
                from t2i.convert.unclip import read_unclip

                pipe = pipeline_class("dalle2")(read_unclip(folder, index), presets()["diffusers"]["settings"])
            else:
                pipe = pipeline_class(kind).assemble(stages, settings)
        except UsageError as error:
            raise DataError(f"{path}: {error}") from error
        pipe.source = str(folder.resolve() if folder == Path(name_or_folder) else name_or_folder)
        pipe.weights = fingerprint(stages)
        if preset is not None:
            pipe.follow(preset)
        return pipe.to(device, dtype, offload=offload)

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
        parts = {name: load_stage(folders[name], expect=cls._kinds(name)) for name in cls._chain(folders)}
        return cls(parts, {} if settings is None else settings)

    def to(
        self, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", *, offload: bool = False
    ) -> Self:
        """Move every stage; "auto" as in `from_pretrained`.

        With `offload`, a stage is on the device only while it draws, and CLIP while it reads, and in the memory of the
        machine before and after: a GPU then needs room for the largest stage, not for all. It does nothing on the CPU.
        """
        self.device, self.dtype, self.offload = device_of(device), dtype_of(dtype), offload
        for name, part in self.parts.items():
            part.to(self._rests(name)).to(memory_format=torch.channels_last)
        return self

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` opens: one sub-folder per stage and `model_index.json`.

        `dtype` is the type of the stored weights, None keeps them as they are.
        """
        folder = Path(folder)
        index: dict[str, Any] = {"_class_name": self.kind, "_t2i_version": __version__}
        for name, part in self.parts.items():
            kind = next(k for k in self._kinds(name) if type(part) is STAGES[k].model_class)
            save_stage(folder / name, kind, part, dtype=dtype)
            index[name] = ["t2i", kind]
        index["settings"] = self.settings
        write(folder / "model_index.json", json.dumps(index, indent=2).encode() + b"\n")
        if dtype is None:
            stages = {name: folder / name for name in self.parts}
            self.source, self.weights, self.preset = str(folder.resolve()), fingerprint(stages), ""

    def follow(self, preset: str) -> None:
        """Sample as a published implementation does; UsageError here, since that is for DALL-E 2's chain."""
        raise UsageError(f"preset={preset!r}: presets are for chains of kind 'dalle2', this model is {self.kind!r}")

    def __call__(self, *subject: Any, **arguments: Any) -> Output:
        """Draw; every kind of pipeline says what it takes."""
        raise TypeError(f"{type(self).__name__} does not draw; open a model with Pipeline.from_pretrained")

    @classmethod
    def _kinds(cls, place: str) -> tuple[str, ...]:
        """The kinds of stage that may fill a place."""
        return (cls.places[place], *cls.alternatives.get(place, ()))

    @classmethod
    def _chain(cls, names: Collection[str]) -> list[str]:
        """`names` in the order of the chain; UsageError for one that it does not have, and for a hole."""
        places = list(cls.places)
        for name in names:
            if name not in places:
                raise UsageError(f"unknown stage {name!r}; stages are {', '.join(places)}{did_you_mean(name, places)}")
        last = max(places.index(name) for name in (cls.drawing[0], *names))
        chain = [name for name in places[: last + 1] if name in names or name not in cls.optional]
        if missing := [name for name in chain if name not in names]:
            raise UsageError(f"the chain {' → '.join(chain)} lacks {', '.join(missing)}")
        return chain

    def _completed(self, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """`defaults` of the stages that are there, overridden by `given`; guidance alone for one that draws codes."""
        if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
            raise UsageError(f"settings must hold values by stage for each of {', '.join(self.defaults)}, got {given}")
        for what in given:
            if what not in self.defaults:
                raise UsageError(f"unknown setting {what!r}{did_you_mean(what, self.defaults)}")
            for name in given[what]:
                if name not in self.places:
                    raise UsageError(f"{what}: unknown stage {name!r}{did_you_mean(name, self.places)}")
        coded = {name for name in self.parts if hasattr(self._config(name), "num_codes")}
        return {
            what: {
                name: v
                for name, v in {**values, **given.get(what, {})}.items()
                if name in self.parts and (what == "guidance" or name not in coded)
            }
            for what, values in self.defaults.items()
        }

    # -- what a call needs ---------------------------------------------------------------------------------------------

    def plan(
        self,
        steps: Any = None,
        guidance: Any = None,
        sampler: Any = None,
        stop_after: str | None = None,
        drawing: Sequence[str] | None = None,
    ) -> Plan:
        """How every stage up to `stop_after` samples; `drawing` are those of the task, `self.drawing` if None."""
        stages = [stage for stage in drawing or self.drawing if stage in self.parts]
        if stop_after is not None and stop_after not in stages:
            hint = did_you_mean(stop_after, stages)
            raise UsageError(f"stop_after: unknown stage {stop_after!r}; stages are {', '.join(stages)}{hint}")
        steering = [part for part in self.steering if part in self.parts]
        defaults, guided = self.settings, self.defaults["guidance"]
        stepped = self._stepped(stages, steps=steps, sampler=sampler)
        num_steps = by_stage("steps", steps, stepped, defaults["steps"], self._check_steps)
        samplers = by_stage("sampler", sampler, stepped, defaults["sampler"], check_sampler)
        scales = by_stage(
            "guidance",
            guidance,
            [*stages, *steering],
            defaults["guidance"],
            lambda name, value: check_guidance(name, value, guided, default=float(name in stages)),
        )
        last = len(stages) - 1 if stop_after is None else stages.index(stop_after)
        heat = self.temperature
        return Plan(
            {
                s: Sampling(num_steps.get(s, 1), samplers.get(s, "ddim"), scales[s], temperature=heat.get(s, 1.0))
                for s in stages[: last + 1]
            },
            {part: scales[part] for part in steering},
        )

    def _stepped(self, stages: list[str], **given: Any) -> list[str]:
        """Of `stages` those that have `steps` and a `sampler`; UsageError if another one is `given` them by name."""
        stepped = [stage for stage in stages if stage in self.settings["steps"]]
        for what, values in given.items():
            for name in values if isinstance(values, Mapping) else ():
                if name in stages and name not in stepped:
                    num = self._config(name).num_codes
                    raise UsageError(f"{what} of {name}: this {name} draws {num} codes one by one and has none")
        return stepped

    def begin(
        self,
        rows: dict[str, list[Any]],
        seed: Any,
        plan: Plan,
        *,
        max_batch: int = 8,
        callback: Callback | None = None,
        progress: bool = True,
        brought: Known | Start | Latent | Tensor | None = None,
        max_tile: int | None = None,
    ) -> Call:
        """A call over rows of equal length, with its progress bar."""
        count, max_batch = len(next(iter(rows.values()))), whole("max_batch", max_batch)
        if max_tile is not None:
            max_tile = self._check_tile(max_tile, plan)
        seeds = seeds_of(seed, count)
        bar = step_bar(progress)  # after the last mistake
        call = Call(rows, seeds, *plan, max_batch, callback, bar, brought, max_tile)
        repeats = self.settings.get("candidates", {})
        bar.total = sum(
            len(self.chunks(call, stage)) * self._num_steps(stage, chosen.steps) * repeats.get(stage, 1)
            for stage, chosen in plan.sampling.items()
        )
        if isinstance(brought, Start):
            steps = self._num_steps("decoder", plan.sampling["decoder"].steps)
            bar.total -= len(self.chunks(call, "decoder")) * (steps - round(brought.strength * steps))
        return call

    def brought(self, call: Call, stage: str, num: int) -> Steering:
        """What a picture that the user brought does to `num` pictures of a stage."""
        if isinstance(call.brought, Known):
            return Steering(processed=call.brought.processed(self._config(stage).image_size, num))
        if isinstance(call.brought, Start) and self.places[stage] == "decoder":
            return Steering(start=call.brought.picture.expand(num, -1, -1, -1), strength=call.brought.strength)
        return Steering()

    def each(self, call: Call, stage: str, fn: Callable[..., Tensor], inputs: Tensor | None = None) -> Tensor:
        """Run `fn(call, stage, rows, on_step, inputs)` of one stage over all rows, a chunk at a time."""
        on_step = self.watch(stage, call.bar, call.callback)
        with self.running(stage, call.timings):
            done = [
                fn(call, stage, rows, on_step, None if inputs is None else inputs[rows])
                for rows in self.chunks(call, stage)
            ]
        return check_finite(stage, torch.cat(done).float())

    def chunks(self, call: Call, stage: str) -> list[slice]:
        """Rows that a stage draws at once: `max_batch`, or fewer where its U-Net works on more than 64 × 64 places."""
        config = self._config(stage)
        side = getattr(config, "image_size", 1)
        if call.max_tile is not None and self.places[stage] == "upsampler":
            side = min(side, call.max_tile)
        places = side // config.unet.patch_size if hasattr(config, "unet") else 1
        return chunks(len(call.seeds), call.max_batch, call.max_batch * 64**2 // places**2)

    def recipe(self, call: Call, task: str | None = None) -> dict[str, Any]:
        """Everything that decides the pictures, as JSON, row by row; where a `task` was given another picture, that is
        not in it."""
        guided = [stage for stage in self.defaults["guidance"] if stage in call.sampling]
        stepped = {stage: call.sampling[stage] for stage in self._stepped(list(call.sampling))}
        arguments = {
            **{name: None if set(values) <= {None, ""} else values for name, values in call.rows.items()},
            "seed": call.seeds,
            "steps": {stage: chosen.steps for stage, chosen in stepped.items()},
            "guidance": {stage: call.sampling[stage].guidance for stage in guided} | call.steering,
            "sampler": {stage: chosen.sampler for stage, chosen in stepped.items()},
            "stop_after": list(call.sampling)[-1],
            "max_batch": call.max_batch,
        } | ({"max_tile": call.max_tile} if call.max_tile is not None else {})
        return ({"task": task} if task is not None else {}) | {
            "t2i": __version__,
            "torch": torch.__version__,
            "model": self.source,
            "weights": self.weights,
            **({"preset": self.preset} if self.preset else {}),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "arguments": arguments,
        }

    def check_pictures(self, stop_after: str | None = None) -> None:
        """UsageError if a call that ends with this stage would draw no picture."""
        last = stop_after or list(self.parts)[-1]
        if last in self.parts and self.places[last] == "prior":
            raise UsageError("the prior draws embeddings, not pictures: stop after decoder or later")

    def bytes_of(self, num: int, stop_after: str | None = None) -> int:
        """Bytes that `num` pictures take at most."""
        drawn = [stage for stage in self.drawing if stage in self.parts]
        side = getattr(self._config(stop_after if stop_after in drawn else drawn[-1]), "image_size", 0)
        return int(num * (3 * side**2 * 1.02 + 2**14))  # what does not compress, and the recipe

    def _rests(self, part: str) -> torch.device:
        """Where a part is while it does nothing; what is asked at every step stays on the device."""
        return torch.device("cpu") if self.offload and part not in self.steering else self.device

    @contextmanager
    def awake(self, part: str) -> Iterator[None]:
        """A part is on the device until the block ends."""
        self.parts[part].to(self.device)
        try:
            yield
        finally:
            self.parts[part].to(self._rests(part))

    def _config(self, stage: str) -> Any:
        return self.parts[stage].config

    def _num_steps(self, stage: str, spec: int | str) -> int:
        config = self._config(stage)
        return config.num_codes if hasattr(config, "num_codes") else len(respaced_steps(spec, config.num_steps))

    def _check_steps(self, stage: str, value: Any) -> int | str:
        try:
            if isinstance(value, bool) or not isinstance(value, Integral | str):
                raise ValueError(f"expected a whole number or a spacing such as 'ddim50', got {value!r}")
            value = value if isinstance(value, str) else int(value)
            self._num_steps(stage, value)
        except ValueError as error:
            raise UsageError(f"steps of {stage}: {error}") from error
        return value

    def _check_tile(self, value: Any, plan: Plan) -> int:
        """A side of tiles that every upsampler folds, or UsageError."""
        side = whole("max_tile", value)
        for stage in (name for name in plan.sampling if self.places[name] == "upsampler"):
            unet = self._config(stage).unet
            if side < (least := SMALLEST * unet.factor):
                raise UsageError(f"max_tile must be at least {least} for {stage}, got {side}")
            if unet.attention_positions:
                raise UsageError(f"max_tile is not for {stage}, which knows the places of pixels in the whole picture")
        return side

    @contextmanager
    def running(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Place, precision and timing of one stage of a call."""
        start, precise = perf_counter(), self.dtype == torch.float32
        keep = not self.offload  # copies of the weights in half precision from step to step: half as much memory again
        autocast = torch.autocast(self.device.type, self.dtype, enabled=not precise, cache_enabled=keep)
        less = "a smaller max_batch or max_tile, offload=True, or dtype='bfloat16'"
        with self.awake(stage), torch.no_grad(), autocast, memory_explained(f"stage {stage!r}", less):
            yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timings[stage] = timings.get(stage, 0.0) + perf_counter() - start

    def watch(self, stage: str, bar: tqdm, callback: Callback | None) -> StepCallback:
        """A sampler's callback that advances the bar and calls the user's function."""
        bar.set_description(stage)

        def on_step(step: int, num_steps: int, x_t: Tensor, prediction: Prediction) -> None:
            bar.update()
            if callback is not None:
                callback(Progress(stage, step, num_steps, lambda: to_pil(prediction.x_0) if x_t.ndim == 4 else []))

        return on_step


def pipeline_class(kind: str) -> type[Pipeline]:
    """The class of a kind of pipeline; UsageError for an unknown one."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind of pipeline {kind!r}; known: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    cls: type[Pipeline] = getattr(import_module(f"t2i.pipelines.{kind}"), KINDS[kind])
    return cls
