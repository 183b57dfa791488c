"""How a pipeline looks to who tries it at a prompt: its `repr`, what `dir` lists, and words of other libraries."""

from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import did_you_mean
from t2i.io.images import to_pil
from t2i.pipeline.habits import ATTRIBUTES

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline

INSIDE = {
    "check_fit",
    "encode_texts",
    "guided",
    "number",
    "planner",
    "preview",
    "readers_of",
    "request",
    "run",
    "sampled",
    "slots",
    "subject",
}
"""What the stories are made of; not for who calls them."""


def describe(pipe: "Pipeline") -> str:
    """The kind of a pipeline, its stages with their sizes, where it is, and how it draws, a line each."""
    source, preset = f" {pipe.source!r}" if pipe.source else "", f", preset {pipe.preset!r}" if pipe.preset else ""
    offload = ", offload" if pipe.offload else ""
    lines = [
        f"{type(pipe).__name__}{source} on {pipe.device}, {str(pipe.dtype).removeprefix('torch.')}{offload}{preset}"
    ]
    width = max(len(name) for name in pipe.parts)
    for name, part in pipe.parts.items():
        count, side = sum(p.numel() for p in part.parameters()), getattr(part.config, "image_size", None)
        draws = side and pipe.planner.stages[name].makes == "pictures"
        what = "latents" if getattr(part.config, "latents", None) is not None else "px"
        chosen = [f"{side} × {side} {what}"] if draws else []
        chosen += [f"{what} {by[name]}" for what, by in pipe.settings.items() if by.get(name) is not None]
        lines.append(f"  {name:<{width}}  {count / 1e6:8.2f} M parameters  {', '.join(chosen)}".rstrip())
    return "\n".join(lines)


def preview(pipe: "Pipeline", stage: str, x_0: Tensor) -> list[Image]:
    """What a stage's present guess looks like; nothing where it is no picture."""
    return to_pil(x_0) if x_0.ndim == 4 else []


def listed(pipe: "Pipeline") -> list[str]:
    """Names that `dir` gives: calls, parts and settings."""
    own = {name for name in object.__dir__(pipe) if not name.startswith("_")}
    return sorted((own - INSIDE) | set(pipe.parts))


def attribute(pipe: "Pipeline", name: str) -> Any:
    """A part by its name; AttributeError with our word for one of another library, or with the nearest."""
    parts = pipe.__dict__.get("parts", {})  # none yet in one that is being made or copied
    if name in parts:
        return parts[name]
    hint = f"; here it is {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
    hint = hint or did_you_mean(name, [] if name.startswith("_") or not parts else listed(pipe))
    raise AttributeError(f"{type(pipe).__name__} has no attribute {name!r}{hint}", name=name, obj=None)
