"""Pictures that come from elsewhere, drawn larger by the upsamplers of a pipeline (Ramesh et al. 2022, section 2.1):
networks of convolutions that were trained on crops, and so take pictures of any size.

    64 × 96 ──upsampler──▶ 256 × 384 ──upsampler──▶ 1024 × 1536
"""

from collections.abc import Mapping, Sequence
from math import gcd, lcm
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.io.images import from_pil, to_pil
from t2i.pipeline.base import Pipeline
from t2i.pipeline.inputs import read_pictures
from t2i.pipeline.request import Call, Callback, Output
from t2i.stages.upsampler.model import UpsamplerConfig


class Upsampling(Pipeline):
    """Of pipelines whose upsamplers see a small picture and nothing else; they fill in `_upsampler`."""

    def upsample(
        self,
        image: Image | Path,
        *,
        start_at: str = "up256",
        seed: int | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_tile: int | None = None,
    ) -> Output:
        """Draw a picture of any size larger by the upsamplers alone: convolutions take what they were not trained on.

        Args:
            image: PIL, or the `Path` of one; need not be square.
            start_at: the first upsampler; "up1024" for pictures that are as fine as what up256 draws.
            max_tile: as in a call; the memory of the networks does not grow with the picture then.
        """
        stages = [name for name in self.parts if self.places[name] == "upsampler"]
        if start_at not in stages:
            known = f"; this model has {', '.join(stages)}" if stages else ": this model has no upsamplers"
            raise UsageError(f"start_at: no upsampler {start_at!r}{known}")
        plan = self.plan(steps, None, sampler, stop_after, stages[stages.index(start_at) :])
        (picture,) = read_pictures([image])
        _check_folds(picture, [self._config(stage) for stage in plan.sampling])
        rows = {"size": [f"{picture.width} × {picture.height}"]}
        call = self.begin(rows, seed, plan, callback=callback, progress=progress, max_tile=max_tile)
        x = from_pil(picture)[None].to(self.device)
        with call.bar:
            for stage in call.sampling:
                x = self.each(call, stage, self._upsampler, x)
        return Output(to_pil(x), call.seeds, [""], self.recipe(call, "upsample"), timings=call.timings)

    def _upsampler(self, call: Call, stage: str, rows: slice, on_step: Any, low_res: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) as a stage enlarges them."""
        raise NotImplementedError


def _check_folds(picture: Image, configs: Sequence[UpsamplerConfig]) -> None:
    """UsageError for a picture of sides that one of these upsamplers, in a row, cannot fold."""
    multiple, scale = 1, 1
    for config in configs:
        scale *= config.magnification
        multiple = lcm(multiple, config.unet.factor // gcd(config.unet.factor, scale))
    if picture.width % multiple or picture.height % multiple:
        raise UsageError(f"the sides must be multiples of {multiple}, got {picture.width} × {picture.height}")
