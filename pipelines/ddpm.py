"""Denoising diffusion: noise becomes a picture step by step, and nothing else is needed.

    DDPM   Ho et al. 2020, arXiv 2006.11239            fixed variances, linear schedule
    IDDPM  Nichol & Dhariwal 2021, arXiv 2102.09672    learned variances, cosine schedule, fewer steps, classes

    x_T ~ N(0, I) ──decoder, T … 1──▶ picture  ( ──upsampler──▶ large picture )       P(x), or P(x | class)

Legend: N pictures · S side of a picture in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.diffusion.sampling import Steering
from t2i.io.images import to_pil
from t2i.pipeline.base import Pipeline
from t2i.pipeline.request import Call, Callback, Output, classes_of, repeated, seeds_of, whole
from t2i.stages.decoder import sample as decoder
from t2i.stages.decoder.model import Decoder
from t2i.stages.upsampler import sample as upsampler
from t2i.stages.upsampler.model import Upsampler


class DDPM(Pipeline):
    """`pipe(num_images=4)`; `pipe(207)` or `pipe("red cube")` for networks that know classes.

    Pictures are rounded to 8 bits, where the reference samplers truncate: 1 of 255 less, or the same.
    """

    kind = "ddpm"
    subject = "classes"
    number = "num_images"
    drawing = ("decoder", "upsampler")
    places: ClassVar = {"decoder": "decoder", "upsampler": "upsampler"}
    defaults: ClassVar = {  # papers take all steps
        "steps": {"decoder": 250, "upsampler": 250},
        "guidance": {"decoder": 1.0},
        "sampler": {"decoder": "ddpm", "upsampler": "ddpm"},
    }

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        super().__init__(parts, settings, source)
        self._check_fit()
        self.plan()

    def __call__(  # type: ignore[override]
        self,
        classes: int | str | Sequence[int | str] | None = None,
        *,
        num_images: int | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures.

        Args:
            classes: what to draw: a number or a name, or several; each picture's seed chooses one if None. Networks
                that know no classes take none.
            num_images: pictures of each class, or in all; None for one, or for one a seed where no class is given.
            seed: picture i uses seed + i, or the i-th of a list; drawn at random, and told, if None.
            steps, sampler: one value, or a dict by stage.
            guidance: of the decoder, classifier-free, for networks that know an absent class (Ho & Salimans 2022).
            stop_after: the last stage to run, decoder or upsampler.
            callback, max_batch: as in `DALLE2`.

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        names = self.class_names
        labels = classes_of(classes, self.num_classes, names)
        if num_images is None:
            num_images = len(seed) if labels is None and isinstance(seed, Sequence) else 1
        num = whole("num_images", num_images)
        seeds = seeds_of(seed, num * (1 if labels is None else len(labels)))
        shown = repeated(labels, num) if labels is not None else self._chosen(seeds)
        plan = self.plan(steps, guidance, sampler, stop_after)
        if plan.sampling["decoder"].guidance != 1 and not self._config("decoder").null_class:
            raise UsageError("guidance of decoder: this network knows no absent class to be guided away from")
        call = self.begin({"classes": shown}, seeds, plan, max_batch=max_batch, callback=callback, progress=progress)
        with call.bar:
            x = self._draw(call)
        prompts = [names[label] if names else "" if label is None else f"class {label}" for label in shown]
        return Output(to_pil(x), seeds, prompts, self.recipe(call), timings=call.timings)

    def _draw(self, call: Call) -> Tensor:
        """The story itself: pictures (N, 3, S, S) in [-1, 1]."""
        x = self.each(call, "decoder", self._decoder)  # (N, 3, S, S)
        if "upsampler" in call.sampling:
            x = self.each(call, "upsampler", self._upsampler, x)
        return x

    def _decoder(self, call: Call, stage: str, rows: slice, on_step: Any, _: Tensor | None) -> Tensor:
        model: Decoder = self.parts["decoder"]  # type: ignore[assignment]
        num, steering = rows.stop - rows.start, self._steering(call, rows)
        condition = model.condition(labels=self._labels(call, rows, model.config.num_classes))
        null = model.null_condition(num) if call.sampling[stage].guidance != 1 else None
        streams = Streams(call.seeds[rows], stage)
        return decoder.sample(
            model, condition, streams, call.sampling[stage], null=null, steering=steering, callback=on_step
        )

    def _upsampler(self, call: Call, stage: str, rows: slice, on_step: Any, low_res: Tensor) -> Tensor:
        model: Upsampler = self.parts["upsampler"]  # type: ignore[assignment]
        labels = self._labels(call, rows, model.config.num_classes)
        condition = model.condition(upsampler.quantised(model, low_res), labels=labels)
        streams = Streams(call.seeds[rows], stage)
        return upsampler.sample(model, condition, streams, call.sampling[stage], callback=on_step)

    # -- what surrounds the story --------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int | None:
        """How many classes can be asked for, None if none can."""
        num: int | None = self._config("decoder").num_classes
        return num

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called; empty if they have numbers only."""
        names: tuple[str, ...] = self._config("decoder").class_names
        return names

    def _steering(self, call: Call, rows: slice) -> Steering:
        """Nothing."""
        return Steering()

    def _labels(self, call: Call, rows: slice, num_classes: int | None) -> Tensor | None:
        """(B,) int64, for a network that knows classes."""
        return torch.tensor(call.rows["classes"][rows], device=self.device) if num_classes is not None else None

    def _chosen(self, seeds: Sequence[int]) -> list[Any]:
        """A class for each picture, by its seed; None where there are no classes."""
        if self.num_classes is None:
            return [None] * len(seeds)
        return Streams(seeds, "class").integers(self.num_classes).tolist()

    def _check_fit(self) -> None:
        """DataError if parts do not belong together."""
        base = self._config("decoder")
        if base.text is not None or base.clip_dim is not None or base.inpaint:
            raise DataError("decoder reads captions or pictures, and a pipeline of classes has none to give")
        if "upsampler" in self.parts:
            large = self._config("upsampler")
            if large.low_size != base.image_size:
                raise DataError(
                    f"upsampler takes pictures of side {large.low_size}, but decoder gives {base.image_size}"
                )
            if large.num_classes not in (None, self.num_classes):
                raise DataError(f"upsampler knows {large.num_classes} classes, but decoder {self.num_classes}")
            if large.text is not None or large.inpaint:
                raise DataError("upsampler reads captions or masks, and a pipeline of classes has none to give")
