"""What a call will need, before it is made."""

from typing import Any

from t2i.core.errors import UsageError
from t2i.pipeline.base import Pipeline


def check_pictures(pipe: Pipeline, stop_after: str | None = None) -> None:
    """UsageError if a call that ends with this stage would draw no picture."""
    last = pipe.planner.stages.get(stop_after or list(pipe.parts)[-1])
    if last is not None and last.makes == "embeddings":
        raise UsageError("the prior draws embeddings, not pictures: stop after decoder or later")


def side_of(config: Any) -> int:
    """Pixels of a side of what a stage draws, once latents are pixels; 0 where any size will do."""
    latents = getattr(config, "latents", None)
    return int(getattr(config, "image_size", 0)) * (latents.factor if latents is not None else 1)


def bytes_of(pipe: Pipeline, num: int, stop_after: str | None = None) -> int:
    """Bytes that `num` pictures take at most."""
    stages = pipe.planner.stages
    drawn = [name for name in pipe.sampled if name in pipe.parts and stages[name].makes == "pictures"]
    last = stop_after if stop_after in drawn else drawn[-1] if drawn else None
    side = max((side_of(pipe.parts[name].config) for name in drawn[: drawn.index(last) + 1]), default=0) if last else 0
    return int(num * (3 * side**2 * 1.02 + 2**14))  # what does not compress, and the recipe
