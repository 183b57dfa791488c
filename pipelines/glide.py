"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): one text-conditional diffusion network, enlarged by a second.

    sentence y ──▶ decoder, classifier-free guidance ──▶ 64 × 64 ──▶ upsampler, told y ──▶ 256 × 256
                     ▲
    noised CLIP ─────┘  instead: every step moves along ∇ ⟨z_t(y), z_i(x_t, t)⟩

    inpaint: a network that also sees the picture without its masked part, and the mask, of its own or the decoder
    itself; or any decoder, whose idea of x_0 is overwritten at every step with what is known.
    edit: sampling starts from a noised picture.

Legend: N pictures · S side of a picture in pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Unpack

from t2i.core.errors import DataError, UsageError, quoted
from t2i.core.types import Tokenizer
from t2i.diffusion.sampling import Hooks
from t2i.pipeline.arguments import Draw, Inpaint, Prompts, prompt_rows
from t2i.pipeline.base import Pipeline
from t2i.pipeline.inputs import Picture
from t2i.pipeline.output import Output
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Slot
from t2i.pipeline.upsampled import upsampled
from t2i.pipelines import inpaint as known


class GLIDE(Pipeline):
    """`pipe("an oil painting of a corgi")`, `pipe.inpaint(image, mask, prompt)`, `pipe.edit(image, prompt)`.

    `guidance={"decoder": 1.0, "clip": 3.0}` is CLIP guidance instead of classifier-free. Steps are the released ones.
    """

    kind, subject, number = "glide", "prompt", "num_images_per_prompt"
    slots = (
        Slot("decoder", ("decoder",), steps=100, sampler="ddpm", guided=True, guidance=3.0),
        Slot("upsampler", ("upsampler",), optional=True, steps="fast27", sampler="ddim", temperature=0.997),
        Slot("inpaint", ("decoder",), optional=True, steps=100, sampler="ddpm", guided=True, guidance=5.0),
        Slot("inpaint_upsampler", ("upsampler",), optional=True, steps="fast27", sampler="ddpm", temperature=0.997),
        Slot("clip", ("noised_clip",), role="guides", guided=True),
    )
    sampled = ("decoder", "upsampler")

    def __call__(
        self, prompt: Prompts, *, negative_prompt: Prompts | None = None, num_images_per_prompt: int = 1,
        upsample_prompt: str | None = None, **draw: Unpack[Draw],
    ) -> Output:  # fmt: skip
        """Draw pictures; arguments and errors as in `DALLE2`, guidance of the stages decoder and clip."""
        scales = self.planner.plan(draw)[1]
        prompt, asked = upsampled(self, prompt, upsample_prompt)
        texts = prompt_rows(prompt, negative_prompt, num_images_per_prompt, self.readers_of(scales), asked)
        return self.run(self.request(draw, texts=texts))

    def run(self, r: Request) -> Output:
        """The story itself."""
        first, *rest = r.sampling
        with r:
            x = r.draw(first)  # (N, 3, 64, 64)
            for stage in rest:
                x = r.draw(stage, low_res=x)  # (N, 3, 256, 256)
        return r.output(x)

    def inpaint(
        self, image: Picture, mask: Picture | None, prompt: Prompts, *,
        method: Literal["auto", "trained", "replaced"] = "auto", **more: Unpack[Inpaint],
    ) -> Output:  # fmt: skip
        """Draw anew what is white in `mask`; see `t2i.pipelines.inpaint.inpaint`.

        Args:
            method: "trained" uses the network trained for this (section 3.2), `inpaint` or the decoder itself;
                "replaced" the decoder, shown nothing, with what is known written into every step; "auto" the former
                where there is one.

        Stages are inpaint and inpaint_upsampler (upsampler where that is missing), or decoder and upsampler where the
        decoder inpaints or when "replaced".
        """
        sampled, shown = inpainting(self.parts, method), method != "replaced"
        return known.inpaint(self, image, mask, prompt, sampled=sampled, shown=shown, **more)

    edit = known.edit

    def readers_of(self, scales: Mapping[str, float]) -> list[Tokenizer]:
        """What reads prompts: the network, and CLIP where it guides."""
        own = self.parts["decoder"].config.ports.text.tokenizer.build()
        return [own] + ([self.parts["clip"].tokenizer] if scales.get("clip", 0.0) else [])

    def guided(self, request: Request, rows: slice, hooks: Hooks) -> Hooks:
        """∇ of the similarity of x_t and the prompts of some rows, where CLIP guides."""
        scale = request.scales.get("clip", 0.0)
        if scale == 0:
            return hooks
        clip = self.parts["clip"]
        tokens, mask = (x.to(self.device) for x in clip.tokenize(request.rows["prompt"][rows]))
        z_t = clip.encode_text(tokens, mask)  # (B, D)
        return replace(hooks, gradient=lambda x_t, t: clip.similarity_gradient(x_t, t, z_t), gradient_scale=scale)

    def check_fit(self) -> None:
        check_fit(self.parts)


def inpainting(parts: Mapping[str, Any], method: str) -> tuple[str, str] | None:
    """Stages that inpaint, None for those that draw: networks that were not trained for it have what is known written
    into every step."""
    if method not in ("auto", "trained", "replaced"):
        raise UsageError(f"unknown method {quoted(method)}; known are auto, trained and replaced")
    if method == "trained" and "inpaint" not in parts and parts["decoder"].config.ports.masked is None:
        raise UsageError("this model has no network that was trained to inpaint; use method='replaced'")
    if method == "replaced":
        return None
    return _painter(parts), "inpaint_upsampler" if "inpaint_upsampler" in parts else "upsampler"


def _painter(parts: Mapping[str, Any]) -> str:
    """The stage that inpaints: of its own, or the decoder."""
    return "inpaint" if "inpaint" in parts else "decoder"


def check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if parts do not belong together."""
    for name, part in parts.items():
        if name == "clip":
            continue
        ports = part.config.ports
        if {"classes", "clip_image"} & set(ports.names):
            raise DataError(f"{name} needs a class or an embedding, which a sentence does not give")
        if (ports.masked is not None) != name.startswith("inpaint") and name != "decoder":
            raise DataError(f"{name} was trained {'with' if ports.masked is not None else 'without'} ports.masked")
    base = parts["decoder"].config
    if base.ports.text is None or base.ports.text.tokenizer is None:
        raise DataError("decoder reads no captions")
    if "inpaint" in parts and parts["inpaint"].config.ports.text is None:
        raise DataError("inpaint reads no captions")
    if "inpaint" in parts and parts["inpaint"].config.image_size != base.image_size:
        theirs = parts["inpaint"].config.image_size
        raise DataError(
            f"inpaint was trained with image_size={theirs}, decoder with {base.image_size}: they do not fit"
        )
    if "clip" in parts:
        _check_clip(base, parts["clip"].config)
    if "inpaint_upsampler" in parts and parts[_painter(parts)].config.ports.masked is None:
        raise DataError("inpaint_upsampler without inpaint")
    for small, large in (("decoder", "upsampler"), (_painter(parts), "inpaint_upsampler")):
        if large in parts and parts[large].config.low_size != parts[small].config.image_size:
            raise DataError(
                f"{large} takes pictures of side {parts[large].config.low_size}, but {small} gives "
                f"{parts[small].config.image_size}"
            )
    for name in ("upsampler", "inpaint", "inpaint_upsampler"):
        text = parts[name].config.ports.text if name in parts else None
        if text is not None and text.tokenizer != base.ports.text.tokenizer:
            raise DataError(f"{name} was trained with another tokeniser than decoder")


def _check_clip(base: Any, clip: Any) -> None:
    """DataError if a noised CLIP learned on other pictures or noise than the decoder that it is to guide."""
    if base.diffusion.rescale_timesteps:
        raise DataError("clip knows whole timesteps, decoder was trained with rescale_timesteps=True: they do not fit")
    ours = {"image_size": base.image_size, **base.diffusion.noise.model_dump()}
    theirs = {"image_size": clip.image_size, **clip.diffusion.noise.model_dump()}
    for fact, value in theirs.items():
        if value != ours[fact]:
            raise DataError(f"clip was trained with {fact}={value}, decoder with {ours[fact]}: they do not fit")
