"""ADM: a diffusion network guided by a classifier (Dhariwal & Nichol 2021, arXiv 2105.05233).

    class y ──────────▶ decoder ──▶ picture  ( ──upsampler, told y──▶ large picture )
                          ▲
    noised classifier ────┘  every step moves along ∇ log p(y | x_t), times the classifier's guidance

Legend: B pictures of a batch.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from t2i.core.errors import DataError
from t2i.diffusion.sampling import Hooks
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Slot
from t2i.pipelines.ddpm import DDPM


class ADM(DDPM):
    """`pipe(207, guidance=10.0)`. An unconditional decoder draws classes too, where a classifier guides it.

    One number is the guidance of the classifier, if there is one; `guidance={"decoder": 3.0, "classifier": 0}` is
    classifier-free guidance instead.
    """

    kind = "adm"
    slots = (
        Slot("decoder", ("decoder",), steps=250, sampler="ddpm", guided=True),
        Slot("classifier", ("classifier",), role="guides", optional=True, guided=True, guidance=1.0),
        Slot("upsampler", ("upsampler",), steps=250, sampler="ddpm"),
    )

    def __init__(self, parts: Mapping[str, nn.Module], settings: Any = None, source: str = "") -> None:
        super().__init__(parts, settings, source)
        if "classifier" not in self.parts and self.settings["guidance"]["decoder"] is None:
            self.settings["guidance"]["decoder"] = 1.0  # so that one number is meant for it

    @property
    def num_classes(self) -> int | None:
        """Classes of the decoder, or of what guides it."""
        judge = self.parts.get("classifier")
        return super().num_classes or (judge.config.num_classes if judge is not None else None)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, by the decoder or by what guides it."""
        judge = self.parts.get("classifier")
        return super().class_names or (judge.config.class_names if judge is not None else ())

    def guided(self, request: Request, rows: slice, hooks: Hooks) -> Hooks:
        """The classifier's gradient at the classes (B,) of some rows."""
        scale = request.scales.get("classifier", 0.0)
        if scale == 0:
            return hooks
        labels = torch.tensor(request.rows["classes"][rows], device=self.device)
        gradient = partial(self.parts["classifier"].log_probability_gradient, labels=labels)
        return replace(hooks, gradient=gradient, gradient_scale=scale)

    def check_fit(self) -> None:
        super().check_fit()
        if "classifier" in self.parts:
            check_judge(self.parts["decoder"].config, self.parts["classifier"].config)


def check_judge(base: Any, judge: Any) -> None:
    """DataError if a classifier learned on other pictures, classes or noise than the decoder that it is to guide."""
    classes = base.ports.classes
    if classes is not None and classes.num != judge.num_classes:
        raise DataError(f"classifier knows {judge.num_classes} classes, but decoder {classes.num}")
    if classes is not None and classes.names and judge.class_names and classes.names != judge.class_names:
        raise DataError("classifier and decoder call their classes differently: they do not belong together")
    ours = {"image_size": base.image_size, **base.diffusion.noise.model_dump()}
    theirs = {"image_size": judge.image_size, **judge.diffusion.noise.model_dump()}
    for fact, value in theirs.items():
        if value != ours[fact]:
            raise DataError(
                f"classifier was trained with {fact}={value}, decoder with {ours[fact]}: they do not belong together"
            )
