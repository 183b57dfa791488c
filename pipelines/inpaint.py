"""Pictures that stay in part, or that drawing begins from, for pipelines that read sentences.

inpaint   what is known is written into every network's idea of x_0, at every step, and shown to those that see it
edit      sampling starts from a noised picture (SDEdit: Meng et al. 2021, arXiv 2108.01073)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from t2i.core.errors import UsageError
from t2i.core.types import Tokenizer
from t2i.pipeline.arguments import Draw, Inpaint, Prompts, Sentences, Texts, prompt_rows
from t2i.pipeline.inputs import Picture, read_edit, read_inpaint
from t2i.pipeline.output import Output
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Planner

if TYPE_CHECKING:
    import torch


class ReadsSentences(Protocol):
    """A pipeline that draws sentences, by one story for all of its calls."""

    parts: dict[str, Any]
    device: "torch.device"

    @property
    def planner(self) -> Planner: ...
    def readers_of(self, scales: Mapping[str, float]) -> list[Tokenizer]: ...
    def request(self, draw: Draw, **what: Any) -> Request: ...
    def run(self, r: Request) -> Output: ...


def inpaint(
    pipe: ReadsSentences,
    image: Picture,
    mask: Picture | None,
    prompt: Prompts,
    *,
    sampled: Sequence[str] | None = None,
    shown: bool = True,
    **more: Unpack[Inpaint],
) -> Output:
    """Draw anew what is white in `mask`; all else stays as it is, to the bit.

    Args:
        image: a square picture, PIL or the path of one; it is resized to what the model draws.
        mask: as large as the picture, see `to_mask_tensor`: what is white is drawn anew, or what is transparent where
            something is; None for what is transparent in the picture itself, as in DALL-E 2's interface.
        prompt: what the whole picture shows then.
        sampled: the stages that inpaint, those of a plain call if None.
        shown: whether networks that see masked pictures are shown what stays.
        more: as in a call, and `blend`: pixels over which the old picture fades into the new one around the mask; 0 for
            a hard edge.
    """
    draw, blend = dict(more), more.get("blend", 0.0)
    draw.pop("blend", None)
    texts, rest, sizes = _told(pipe, prompt, draw, sampled)
    known = read_inpaint(image, mask, size=sizes[-1], base=sizes[0], blend=blend).to(pipe.device)
    source = replace(known, shown=shown)
    return pipe.run(pipe.request(rest, texts=texts, source=source, task="inpaint", sampled=sampled))


def edit(
    pipe: ReadsSentences, image: Picture, prompt: Prompts, strength: float = 0.7, **more: Unpack[Sentences]
) -> Output:
    """Draw `prompt`, starting from a noised picture.

    Args:
        image: a square picture, PIL or the path of one; its composition stays, the more the lower the strength.
        strength: share of the decoder's steps that are taken, from 0, the small picture as it is, to 1.
        more: as in a call.
    """
    texts, rest, _ = _told(pipe, prompt, dict(more), None)
    source = read_edit(image, strength, pipe.parts["decoder"].config.image_size).to(pipe.device)
    return pipe.run(pipe.request(rest, texts=texts, source=source, task="edit"))


def _told(
    pipe: ReadsSentences, prompt: Prompts, more: dict[str, Any], sampled: Sequence[str] | None
) -> tuple[Texts, Draw, list[int]]:
    """The sentences of every picture, what is left of the arguments, and the sides of what every stage draws, the small
    pictures first; UsageError if none draws any."""
    negative, num = more.pop("negative_prompt", None), more.pop("num_images_per_prompt", 1)
    planner, draw = pipe.planner, Draw(**more)  # type: ignore[typeddict-item]
    plan, scales = planner.plan(draw, sampled)
    sides = [pipe.parts[name].config.image_size for name in plan if planner.stages[name].makes == "pictures"]
    if not sides:
        raise UsageError("the prior draws embeddings, not pictures: stop after decoder or later")
    return prompt_rows(prompt, negative, num, pipe.readers_of(scales)), draw, sides
