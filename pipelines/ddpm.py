"""Denoising diffusion: noise becomes a picture step by step, and nothing else is needed.

    DDPM   Ho et al. 2020, arXiv 2006.11239            fixed variances, linear schedule
    IDDPM  Nichol & Dhariwal 2021, arXiv 2102.09672    learned variances, cosine schedule, fewer steps, classes

    x_T ~ N(0, I) ──decoder, T … 1──▶ picture  ( ──upsampler──▶ large picture )       P(x), or P(x | class)

Legend: N pictures · S side of a picture in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.pipeline.arguments import Draw, classes_of, positive_int, repeat_each, seeds_of, some
from t2i.pipeline.base import Pipeline
from t2i.pipeline.output import Output
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Slot


class DDPM(Pipeline):
    """`pipe(num_images=4)`; `pipe(207)` or `pipe("red cube")` for networks that know classes.

    Papers take all steps. Pictures are rounded to 8 bits, where the reference samplers truncate: 1 of 255 less, or the
    same.
    """

    kind, subject, number = "ddpm", "classes", "num_images"
    slots: ClassVar[tuple[Slot, ...]] = (
        Slot("decoder", ("decoder",), steps=250, sampler="ddpm", guided=True, guidance=1.0),
        Slot("upsampler", ("upsampler",), steps=250, sampler="ddpm"),
    )
    sampled = ("decoder", "upsampler")

    def __call__(
        self, classes: int | str | Sequence[int | str] | None = None, *, num_images: int | None = None,
        **draw: Unpack[Draw],
    ) -> Output:  # fmt: skip
        """Draw pictures.

        Args:
            classes: what to draw: a number or a name, or several; each picture's seed chooses one if None. Networks
                that know no classes take none.
            num_images: pictures of each class, or in all; None for one, or for one a seed where no class is given.
            draw: see `Draw`; guidance is classifier-free, for networks that know an absent class (Ho & Salimans 2022).

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        shown, seeds = rows_of_classes(self, classes, num_images, draw.get("seed"))
        draw["seed"] = seeds
        plan, _ = self.planner.plan(draw)
        if plan["decoder"].guidance != 1 and not has_null_class(self.parts["decoder"].config):
            raise UsageError("guidance of decoder: this network knows no absent class to be guided away from")
        return self.run(self.request(draw, classes=shown))

    def run(self, r: Request) -> Output:
        """The story itself."""
        with r:
            x = r.draw("decoder")  # (N, 3, S, S)
            if "upsampler" in r.sampling:
                x = r.draw("upsampler", low_res=x)
        labels, names = r.classes or [], self.class_names
        return r.output(x, prompts=[names[c] if names and c is not None else _word(c) for c in labels])

    @property
    def num_classes(self) -> int | None:
        """How many classes can be asked for, None if none can."""
        classes = self.parts["decoder"].config.ports.classes
        return classes.num if classes is not None else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called; empty if they have numbers only."""
        classes = self.parts["decoder"].config.ports.classes
        return classes.names if classes is not None else ()

    def check_fit(self) -> None:
        check_fit(self.parts, self.num_classes)


def rows_of_classes(pipe: DDPM, classes: Any, num_images: int | None, seed: Any) -> tuple[list[int | None], list[int]]:
    """The class and the seed of every picture; None where there are no classes."""
    labels = classes_of(classes, pipe.num_classes, pipe.class_names)
    if num_images is None:
        num_images = len(some("seeds", seed)) if labels is None and isinstance(seed, Sequence) else 1
    num = positive_int("num_images", num_images)
    seeds = seeds_of(seed, num * (1 if labels is None else len(labels)))
    if labels is not None:
        return repeat_each(labels, num), seeds
    if pipe.num_classes is None:
        return [None] * len(seeds), seeds
    return Streams(seeds, "class").integers(pipe.num_classes).tolist(), seeds


def has_null_class(config: Any) -> bool:
    """Whether a network knows an absent class."""
    return config.ports.classes is not None and config.ports.classes.null_class


def check_fit(parts: Mapping[str, Any], num_classes: int | None) -> None:
    """DataError if parts do not belong together."""
    base = parts["decoder"].config
    if set(base.ports.names) - {"classes"}:
        raise DataError("decoder reads captions or pictures, and a pipeline of classes has none to give")
    if "upsampler" in parts:
        large = parts["upsampler"].config
        if large.low_size != base.image_size:
            raise DataError(f"upsampler takes pictures of side {large.low_size}, but decoder gives {base.image_size}")
        if large.ports.classes is not None and large.ports.classes.num != num_classes:
            raise DataError(f"upsampler knows {large.ports.classes.num} classes, but decoder {num_classes}")
        if set(large.ports.names) - {"classes"}:
            raise DataError("upsampler reads captions or masks, and a pipeline of classes has none to give")


def _word(label: int | None) -> str:
    return "" if label is None else f"class {label}"
