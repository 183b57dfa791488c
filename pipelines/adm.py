"""ADM: a diffusion network steered by a classifier (Dhariwal & Nichol 2021, arXiv 2105.05233).

    class y ──────────▶ decoder ──▶ picture  ( ──upsampler, told y──▶ large picture )
                          ▲
    noised classifier ────┘  every step moves along ∇ log p(y | x_t), times the classifier's guidance

Legend: B pictures of a batch.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from t2i.core.errors import DataError
from t2i.diffusion.sampling import Steering
from t2i.pipeline.request import Call
from t2i.pipelines.ddpm import DDPM
from t2i.stages.classifier.model import Classifier


class ADM(DDPM):
    """`pipe(207, guidance=10.0)`. An unconditional decoder draws classes too, where a classifier steers it.

    One number is the guidance of the classifier, if there is one; `guidance={"decoder": 3.0, "classifier": 0}` is
    classifier-free guidance instead.
    """

    kind = "adm"
    steering = ("classifier",)
    optional = frozenset({"classifier"})
    places: ClassVar = {"decoder": "decoder", "classifier": "classifier", "upsampler": "upsampler"}
    defaults: ClassVar = {**DDPM.defaults, "guidance": {"decoder": None, "classifier": 1.0}}

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        super().__init__(parts, settings, source)
        if "classifier" not in self.parts and self.settings["guidance"]["decoder"] is None:
            self.settings["guidance"]["decoder"] = 1.0  # so that one number is meant for it

    @property
    def num_classes(self) -> int | None:
        """Classes of the decoder, or of what steers it."""
        num = super().num_classes
        return self._config("classifier").num_classes if num is None and "classifier" in self.parts else num

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, by the decoder or by what steers it."""
        names = super().class_names
        return self._config("classifier").class_names if not names and "classifier" in self.parts else names

    def _steering(self, call: Call, rows: slice) -> Steering:
        scale = call.steering.get("classifier", 0.0)
        if scale == 0:
            return Steering()
        classifier: Classifier = self.parts["classifier"]  # type: ignore[assignment]
        labels = torch.tensor(call.rows["classes"][rows], device=self.device)  # (B,)
        return Steering(
            gradient=lambda x_t, t: classifier.log_probability_gradient(x_t, t, labels), gradient_scale=scale
        )

    def _check_fit(self) -> None:
        super()._check_fit()
        if "classifier" not in self.parts:
            return
        base, judge = self._config("decoder"), self._config("classifier")
        if base.num_classes not in (None, judge.num_classes):
            raise DataError(f"classifier knows {judge.num_classes} classes, but decoder {base.num_classes}")
        if base.class_names and judge.class_names and base.class_names != judge.class_names:
            raise DataError("classifier and decoder call their classes differently: they do not belong together")
        for fact in ("image_size", "schedule", "num_steps", "rescale_timesteps"):
            if getattr(judge, fact) != getattr(base, fact):
                raise DataError(
                    f"classifier was trained with {fact}={getattr(judge, fact)}, decoder with {getattr(base, fact)}: "
                    "they do not belong together"
                )
