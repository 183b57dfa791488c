"""A picture taken apart into its bipartite latent representation (z_i, x_T) (Ramesh et al. 2022, section 3), and back.

    picture ──CLIP image tower───────────▶ z_i    what CLIP sees in it
    picture, z_i ──DDIM, run backwards───▶ x_T    all the rest (Dhariwal & Nichol 2021, appendix F)
    z_i ──decoder, upsamplers────────────▶ a picture of it, without the prior

Functions of a pipeline whose decoder is conditioned on CLIP image embeddings; `DALLE2` has them as methods.

Legend: N pictures · D width of CLIP embeddings · s side of the decoder's pictures in pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack, cast

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError, quoted
from t2i.core.types import TextFeatures, Tokenizer
from t2i.diffusion.sampling import Sampling
from t2i.io.images import to_square_tensor
from t2i.pipeline.arguments import (
    Draw,
    Prompts,
    Texts,
    check_finite,
    positive_int,
    read_prompts,
)
from t2i.pipeline.inputs import Latent, read_embeddings, read_pictures
from t2i.pipeline.output import Callback, Output
from t2i.pipeline.placement import stage_context
from t2i.pipeline.request import Request, chunks, step_bar, step_callback
from t2i.stages.stage import Inputs

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline
    from t2i.stages.clip.model import ClipEncoder

Files = Image | Path | str | Sequence[Image | Path | str]
Picture = Image | Path | str | Latent
STEPS = 50
"""Of the decoder, both ways: a picture needs more to come back than to be drawn."""


class TakesEmbeddings(Protocol):
    """A pipeline whose decoder is conditioned on CLIP image embeddings."""

    parts: dict[str, Any]
    device: torch.device
    sampled: Any

    @property
    def clip(self) -> "ClipEncoder": ...
    @property
    def readers(self) -> list[Tokenizer]: ...
    @property
    def planner(self) -> Any: ...
    def encode_texts(self, *texts: Sequence[str]) -> list[TextFeatures]: ...
    def request(self, draw: Draw, **what: Any) -> Request: ...
    def run(self, r: Request) -> Output: ...
    def __call__(self, prompt: Prompts, **draw: Any) -> Output: ...


@torch.no_grad()
def embed(pipe: TakesEmbeddings, image: Files, *, max_batch: int = 8) -> Tensor:
    """CLIP image embeddings (N, D) of square pictures, float32 on the CPU."""
    clip = pipe.clip
    size = max(clip.image_size, 1)  # a CLIP without a tower for pictures says so itself
    pixels = torch.stack([to_square_tensor(one, size) for one in read_pictures(image)])
    with stage_context(cast("Pipeline", pipe), "clip", {}):
        parts = pixels.split(positive_int("max_batch", max_batch))
        found = [clip.encode_image(part.to(pipe.device)) for part in parts]
    return check_finite("clip", torch.cat(found).float().cpu())


@torch.no_grad()
def encode(
    pipe: TakesEmbeddings,
    image: Files,
    *,
    steps: int | str = STEPS,
    corrections: int = 1,
    callback: Callback | None = None,
    progress: bool = True,
    max_batch: int = 8,
) -> Latent:
    """Take pictures apart.

    Args:
        image: one or several; each is resized to what CLIP sees, and to what the decoder draws.
        steps: of the decoder; the way back should have as many.
        corrections: calls of the decoder at every step beyond the first, see `ddim_invert`; 0 is the paper's way.
        callback: called after every step of the stage "invert".
    """
    model, stage = pipe.parts.get("decoder"), pipe.planner.stages.get("decoder")
    draw = Draw(steps={"decoder": steps}, stop_after="decoder", callback=callback, progress=progress)
    sampling = plan_ddim(pipe, draw)["decoder"]
    if isinstance(corrections, bool) or not isinstance(corrections, int) or not 0 <= corrections <= 100:
        raise UsageError(f"corrections must be a whole number from 0 to 100, got {quoted(corrections)}")
    if (num_steps := pipe.planner.num_evaluations("decoder", sampling)) < 2:
        raise UsageError(f"steps of decoder must be at least 2 to invert a picture, got {quoted(sampling.steps)}")
    pictures, side = read_pictures(image), pipe.parts["decoder"].config.image_size
    x_0 = torch.stack([to_square_tensor(one, side) for one in pictures])  # (N, 3, s, s)
    z_i = embed(pipe, pictures, max_batch=max_batch)
    groups = chunks(len(x_0), len(x_0), positive_int("max_batch", max_batch))
    x_T = []
    with step_bar(progress, len(groups) * (num_steps - 1)) as bar, stage_context(cast("Pipeline", pipe), "decoder", {}):
        on_step = step_callback(cast("Pipeline", pipe), "invert", bar, callback)
        for rows in groups:
            nothing = [""] * len(x_0[rows])
            inputs = Inputs(len(nothing), nothing, nothing, pipe.encode_texts, z_i[rows].to(pipe.device))
            found = stage.invert(
                model, inputs, x_0[rows].to(pipe.device), sampling.steps, corrections=corrections, callback=on_step
            )
            x_T.append(found.cpu())
    return Latent(z_i, check_finite("invert", torch.cat(x_T)))


def decode(pipe: TakesEmbeddings, embeddings: Tensor, prompt: Prompts | None = None, **draw: Unpack[Draw]) -> Output:
    """Draw pictures of embeddings, without the prior.

    Args:
        embeddings: (N, D), one for each picture, such as `embed(pictures)` or a call up to "prior" gives.
        prompt: given to the decoder beside them, one for all or one for each; None for nothing.
        draw: as in a call, which draws the same pictures from the same embeddings, prompts and seeds.
    """
    check_pictures(pipe)
    z_i = read_embeddings(embeddings, pipe.clip.dim, unit_norm(pipe))
    prompts, cut = read_prompts(prompt, pipe.readers) if prompt is not None else ([""], [False])
    if len(prompts) not in (1, len(z_i)):
        raise UsageError(f"{len(prompts)} prompts for {len(z_i)} embeddings")
    num = len(z_i) // len(prompts)
    texts = Texts(prompts * num, [""] * len(z_i), cut * num)
    return pipe.run(pipe.request(draw, texts=texts, source=z_i, task="decode", sampled=after_prior(pipe)))


def plan_ddim(pipe: TakesEmbeddings, draw: Draw) -> Mapping[str, Sampling]:
    """How the decoder, by DDIM, and the stages after it sample; `draw` is filled in with that."""
    check_pictures(pipe)
    steps, sampler = draw.get("steps"), draw.get("sampler")
    if steps is None or isinstance(steps, Mapping):
        draw["steps"] = {"decoder": STEPS, **(steps or {})}
    asked = sampler.get("decoder") if isinstance(sampler, Mapping) else sampler
    if asked not in (None, "ddim"):
        raise UsageError(
            f"sampler of decoder: pictures are taken apart and put together by ddim, not by {quoted(asked)}"
        )
    draw["sampler"] = {"decoder": "ddim", **sampler} if isinstance(sampler, Mapping) else sampler or {"decoder": "ddim"}
    plan, _ = pipe.planner.plan(draw, after_prior(pipe))
    return cast("Mapping[str, Sampling]", plan)


def after_prior(pipe: TakesEmbeddings) -> tuple[str, ...]:
    """The slots that draw pictures."""
    return tuple(name for name in pipe.sampled if name != "prior")


def check_pictures(pipe: TakesEmbeddings) -> None:
    """UsageError for a chain that ends with embeddings."""
    if "decoder" not in pipe.parts:
        raise UsageError("the prior draws embeddings, not pictures: stop after decoder or later")


def unit_norm(pipe: TakesEmbeddings) -> bool:
    """Whether all embeddings have length 1, as CLIP's do; some priors draw some of nearly that."""
    prior = pipe.planner.stages.get("prior")
    return pipe.clip.config.unit_norm and not (prior is not None and prior.rough_norm)
