"""Pictures from elsewhere, drawn larger by the upsamplers of a pipeline (Ramesh et al. 2022, section 2.1): networks of
convolutions that were trained on crops, and so take pictures of any size.

    64 × 96 ──upsampler──▶ 256 × 384 ──upsampler──▶ 1024 × 1536
"""

from collections.abc import Sequence
from math import gcd, lcm
from pathlib import Path
from typing import Any, Unpack

from PIL.Image import Image

from t2i.core.errors import UsageError, quoted
from t2i.io.images import from_pil, on_white, upright, with_alpha
from t2i.pipeline.arguments import Draw
from t2i.pipeline.base import Pipeline
from t2i.pipeline.inputs import read_pictures
from t2i.pipeline.output import Output


def upsample(pipe: Pipeline, image: Image | Path | str, *, start_at: str = "up256", **draw: Unpack[Draw]) -> Output:
    """Draw a picture of any size larger by the upsamplers alone: convolutions take what they were not trained on.

    Args:
        image: PIL, or the path of one; need not be square. What is transparent stays so, where it is enlarged alike.
        start_at: the first upsampler; "up1024" for pictures that are as fine as what up256 draws.
        draw: as in a call; with `max_tile` the memory of the networks does not grow with the picture.
    """
    stages = [name for name, stage in pipe.planner.stages.items() if stage.check_tile is not None]
    if start_at not in stages:
        there = f"; this model has {', '.join(stages)}" if stages else ": this model has no upsamplers"
        raise UsageError(f"start_at: no upsampler {quoted(start_at)}{there}")
    sampled = stages[stages.index(start_at) :]
    (picture,) = read_pictures([image])
    seen = upright(picture)
    plan, _ = pipe.planner.plan(draw, sampled)
    _check_folds(seen, [pipe.parts[name].config for name in plan])
    notes = {"size": [f"{seen.width} × {seen.height}"]}
    with pipe.request(draw, notes=notes, task="upsample", sampled=sampled) as r:
        x = from_pil(on_white(seen))[None].to(pipe.device)  # (1, 3, h, w)
        for stage in r.sampling:
            x = r.draw(stage, low_res=x)
    out = r.output(x)
    if seen.mode == "RGBA":
        out.images = [with_alpha(image, seen.getchannel("A")) for image in out.images]
    return out


def _check_folds(picture: Image, configs: Sequence[Any]) -> None:
    """UsageError for a picture of sides that one of these upsamplers, in a row, cannot fold."""
    multiple, scale = 1, 1
    for config in configs:
        scale *= config.magnification
        multiple = lcm(multiple, config.unet.factor // gcd(config.unet.factor, scale))
    if picture.width % multiple or picture.height % multiple:
        raise UsageError(f"the sides must be multiples of {multiple}, got {picture.width} × {picture.height}")
