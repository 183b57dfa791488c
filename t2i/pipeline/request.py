"""One call of a pipeline, resolved: every row is one picture, and stages run over all rows, a batch at a time.

N pictures · B of a batch
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.core.types import Prediction, StepCallback
from t2i.diffusion.sampling import Hooks
from t2i.io.images import to_pil
from t2i.pipeline.arguments import Draw, Texts, check_finite, positive_int, seeds_of
from t2i.pipeline.inputs import EditInput, InpaintInput, Latent
from t2i.pipeline.output import Callback, Output, Progress
from t2i.pipeline.placement import stage_context
from t2i.stages.stage import How, Inputs
from t2i.version import __version__

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline

Source = InpaintInput | EditInput | Latent | Tensor | None
"""A picture of which a part stays, or from which drawing begins, or what pictures were taken apart into, or embeddings
(N, D)."""


class Request:
    """A call with everything in it checked; a context, in which its progress is shown.

    Args:
        draw: what every call takes; what is not given is as the model is set.
        texts, classes: what each of N pictures is drawn from.
        notes: further facts of every picture for the recipe, by name.
        source: what the user gave beside words.
        task: the kind of call, for the recipe; None for a plain one, which a recipe repeats.
        sampled: the stages of this kind of call, those of the pipeline if None.
        eta: DDIM's share of fresh noise in the stage that draws first.

    Raises UsageError for what cannot be.
    """

    def __init__(
        self,
        pipe: "Pipeline",
        draw: Draw,
        *,
        texts: Texts | None = None,
        classes: Sequence[int | None] | None = None,
        notes: Mapping[str, list[Any]] | None = None,
        source: Source = None,
        task: str | None = None,
        sampled: Sequence[str] | None = None,
        eta: float = 0.0,
    ) -> None:
        self.pipe, self.texts, self.classes, self.source, self.task = pipe, texts, classes, source, task
        self.sampling, self.scales = pipe.planner.plan(draw, sampled)
        if texts is not None and any(texts.negatives) and all(s.guidance == 1 for s in self.sampling.values()):
            warnings.warn("a negative prompt says nothing where guidance is 1", stacklevel=4)
        pictures = [name for name in self.sampling if pipe.planner.stages[name].makes == "pictures"]
        self.first = pictures[0] if pictures else None
        if eta and self.first is not None:
            self.sampling[self.first] = replace(self.sampling[self.first], eta=eta)
        self.rows: dict[str, list[Any]] = {} if classes is None else {"classes": list(classes)}
        if texts is not None:
            self.rows = {"prompt": texts.prompts, "negative_prompt": texts.negatives}
        self.rows |= notes or {}
        self.num = len(next(iter(self.rows.values())))
        self.max_batch = positive_int("max_batch", draw.get("max_batch", 8))
        self.max_tile = self._tile(draw.get("max_tile"))
        self.seeds = seeds_of(draw.get("seed"), self.num)
        self.callback, self.timings = draw.get("callback"), dict[str, float]()
        self.bar = step_bar(draw.get("progress", True))  # after the last mistake
        self.bar.total = sum(len(self.batches(name)) * self._evaluations(name) for name in self.sampling)

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def draw(self, stage: str, **given: Tensor) -> Tensor:
        """Run one stage over all rows: embeddings (N, D), or pictures (N, 3, H, W) in [-1, 1].

        Args:
            given: what earlier stages made, by the name in `Inputs`, N rows each.

        Raises NonFiniteError that names the stage, OutOfMemoryError that says what needs less.
        """
        model, run = self.pipe.parts[stage], self.pipe.planner.stages[stage].draw
        assert run is not None
        on_step, done = step_callback(self.pipe, stage, self.bar, self.callback), []
        with stage_context(self.pipe, stage, self.timings):
            for rows in self.batches(stage):
                inputs = self.inputs(rows, **{name: x[rows] for name, x in given.items()})
                done.append(run(model, inputs, self._how(stage, rows, on_step)))
            drawn = torch.cat(done)
        return check_finite(stage, drawn.float())

    def inputs(self, rows: slice, **given: Tensor) -> Inputs:
        """What a stage may take of some rows."""
        num, source, device = rows.stop - rows.start, self.source, self.pipe.device
        texts = self.texts if self.texts is not None else Texts([], [], [])
        classes = None
        if self.classes is not None and None not in self.classes:
            classes = torch.tensor(self.classes[rows], device=device)  # (B,)
        shown = source if isinstance(source, InpaintInput) and source.shown else None
        return Inputs(
            num,
            prompts=texts.prompts[rows],
            negatives=texts.negatives[rows],
            encode=self.pipe.encode_texts,
            classes=classes,
            masked=None if shown is None else lambda side: shown.at(side, num),
            **given,
        )

    def batches(self, stage: str) -> list[slice]:
        """Rows that a stage draws at once: what a group of `max_batch` is cut into does not depend on the groups before
        it, so it can be drawn again alone."""
        rows = self.pipe.planner.stages[stage].rows(self.pipe.parts[stage].config, self.max_batch, self.max_tile)
        return chunks(self.num, self.max_batch, rows)

    def output(
        self, x: Tensor | None, embeddings: Tensor | None = None, prompts: Sequence[str] | None = None
    ) -> Output:
        """The pictures (N, 3, S, S) in [-1, 1], or embeddings alone, with what made them."""
        if x is not None and isinstance(self.source, InpaintInput):
            x = self.source.paste(x)
        texts = self.texts
        return Output(
            images=to_pil(x) if x is not None else [],
            seeds=self.seeds,
            prompts=list(prompts) if prompts is not None else texts.prompts if texts is not None else [""] * self.num,
            recipe=self.recipe(),
            embeddings=embeddings.cpu() if embeddings is not None else None,
            timings=self.timings,
            truncated=texts.truncated if texts is not None else [],
        )

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the pictures, as JSON, row by row; where the task was given another picture, that is
        not in it."""
        pipe, planner = self.pipe, self.pipe.planner
        stepped = {name: s for name, s in self.sampling.items() if planner.stages[name].stepped}
        guided = [name for name, slot in planner.slots.items() if slot.guided and name in self.sampling]
        arguments = {
            **{name: None if set(values) <= {None, ""} else values for name, values in self.rows.items()},
            "seed": self.seeds,
            "steps": {name: s.steps for name, s in stepped.items()},
            "guidance": {name: self.sampling[name].guidance for name in guided} | self.scales,
            "sampler": {name: s.sampler for name, s in stepped.items()},
            "stop_after": list(self.sampling)[-1],
            "max_batch": self.max_batch,
        } | ({"max_tile": self.max_tile} if self.max_tile is not None else {})
        return ({"task": self.task} if self.task is not None else {}) | {
            "t2i": __version__,
            "torch": torch.__version__,
            "model": pipe.source,
            "weights": pipe.weights,
            **({"preset": pipe.preset} if pipe.preset else {}),
            "device": pipe.device.type,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            **({"asked": self.texts.asked} if self.texts is not None and self.texts.asked is not None else {}),
            "arguments": arguments,
        }

    def _how(self, stage: str, rows: slice, on_step: StepCallback) -> How:
        latent = self.source if isinstance(self.source, Latent) and stage == self.first else None
        return How(
            self.sampling[stage],
            Streams(self.seeds[rows], stage),
            hooks=self._hooks(stage, rows),
            x_T=latent.x_T[rows] if latent is not None else None,
            num_candidates=self.pipe.settings.get("candidates", {}).get(stage, 1),
            max_tile=self.max_tile,
            callback=on_step,
        )

    def _hooks(self, stage: str, rows: slice) -> Hooks:
        """What a picture that the user gave, and the parts that guide, do to some rows of a stage."""
        num, source, hooks = rows.stop - rows.start, self.source, Hooks()
        if self.pipe.planner.stages[stage].makes != "pictures":
            return hooks
        if isinstance(source, InpaintInput):
            hooks = Hooks(processed=source.processed(self.pipe.parts[stage].config.image_size, num))
        if isinstance(source, EditInput) and stage == self.first:
            hooks = Hooks(start=source.picture.expand(num, -1, -1, -1), strength=source.strength)
        return self.pipe.guided(self, rows, hooks) if stage == self.first else hooks

    def _evaluations(self, stage: str) -> int:
        """Steps of a batch; an edit takes a share of them."""
        all_steps = self.pipe.planner.num_evaluations(stage, self.sampling[stage])
        if isinstance(self.source, EditInput) and stage == self.first:
            return round(self.source.strength * all_steps)
        return all_steps

    def _tile(self, value: Any) -> int | None:
        """A side of tiles that every upsampler folds, or UsageError."""
        if value is None:
            return None
        side, tiled = positive_int("max_tile", value), 0
        for name, stage in self.pipe.planner.stages.items():
            tiled += stage.check_tile is not None
            if stage.check_tile is not None and name in self.sampling:
                with explain(f"max_tile of {name}", UsageError):
                    stage.check_tile(self.pipe.parts[name].config, side)
        if not tiled:
            raise UsageError("max_tile is for upsamplers, of which this model has none")
        return side


def step_bar(progress: bool, total: int | None = None) -> tqdm:
    """A bar of steps on stderr, where that is a terminal or a notebook; none without `progress`."""
    return tqdm(total=total, disable=None if progress else True, unit="step", leave=False)


def step_callback(pipe: "Pipeline", stage: str, bar: tqdm, callback: Callback | None) -> StepCallback:
    """A sampler's callback that advances the bar and calls the user's function."""
    bar.set_description(stage)

    def on_step(step: int, num_steps: int, x_t: Tensor, prediction: Prediction) -> None:
        bar.update()
        if callback is not None:
            callback(Progress(stage, step, num_steps, lambda: pipe.preview(stage, prediction.x_0)))

    return on_step


def chunks(count: int, group: int, size: int) -> list[slice]:
    """Rows 0 … count-1 in groups of `group`, each cut into parts of `size` from its own start, at least 1."""
    size = min(max(size, 1), group)
    return [
        slice(i, min(i + size, first + group, count))
        for first in range(0, count, group)
        for i in range(first, min(first + group, count), size)
    ]
