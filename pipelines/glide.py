"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): one text-conditional diffusion network, enlarged by a second.

    sentence y ──▶ decoder, classifier-free guidance ──▶ 64 × 64 ──▶ upsampler, told y ──▶ 256 × 256
                     ▲
    noised CLIP ─────┘  instead: every step moves along ∇ ⟨z_t(y), z_i(x_t, t)⟩

    inpaint: a network that also sees the picture without its masked part, and the mask, of its own or the decoder
    itself; or any decoder, whose idea of x_0 is overwritten at every step with what is known.
    edit: sampling starts from a noised picture.

Legend: N pictures · S side of a picture in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from PIL.Image import Image
from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import Tokenizer
from t2i.io.images import to_pil
from t2i.pipeline.base import Pipeline
from t2i.pipeline.inputs import Known, read_known, read_start
from t2i.pipeline.request import Call, Callback, Output, Plan, sentences
from t2i.stages.decoder import sample as decoder
from t2i.stages.decoder.model import Decoder
from t2i.stages.noised_clip.model import NoisedClip
from t2i.stages.upsampler import sample as upsampler
from t2i.stages.upsampler.model import Upsampler
from t2i.text.tokenizers import tokenize

Prompts = str | Sequence[str]
ByStage = Mapping[str, Any]


class GLIDE(Pipeline):
    """`pipe("an oil painting of a corgi")`, `pipe.inpaint(image, mask, prompt)`, `pipe.edit(image, prompt)`.

    `guidance={"decoder": 1.0, "clip": 3.0}` is CLIP guidance instead of classifier-free.
    """

    kind = "glide"
    subject = "prompt"
    number = "num_images_per_prompt"
    drawing = ("decoder", "upsampler")
    steering = ("clip",)
    optional = frozenset({"upsampler", "inpaint", "inpaint_upsampler"})
    places: ClassVar = {
        "decoder": "decoder",
        "upsampler": "upsampler",
        "inpaint": "decoder",
        "inpaint_upsampler": "upsampler",
        "clip": "noised_clip",
    }
    defaults: ClassVar = {  # the released recipe
        "steps": {"decoder": 100, "upsampler": "fast27", "inpaint": 100, "inpaint_upsampler": "fast27"},
        "guidance": {"decoder": 3.0, "inpaint": 5.0, "clip": None},
        "sampler": {"decoder": "ddpm", "upsampler": "ddim", "inpaint": "ddpm", "inpaint_upsampler": "ddpm"},
    }
    temperature: ClassVar = {"upsampler": 0.997, "inpaint_upsampler": 0.997}

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        super().__init__(parts, settings, source)
        _check_fit(self.parts)
        self.plan()
        self._tokenizer = self._config("decoder").tokenizer.build()

    def __call__(  # type: ignore[override]
        self,
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | ByStage | None = None,
        guidance: float | ByStage | None = None,
        sampler: str | ByStage | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures; arguments and errors as in `DALLE2`, guidance of the stages decoder and clip."""
        plan = self.plan(steps, guidance, sampler, stop_after)
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers(plan))
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress)
        return self._output(call, cut)

    def inpaint(
        self,
        image: Image,
        mask: Image,
        prompt: Prompts,
        *,
        method: Literal["auto", "trained", "replaced"] = "auto",
        blend: float = 0.0,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | ByStage | None = None,
        guidance: float | ByStage | None = None,
        sampler: str | ByStage | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw anew what is white in `mask`; all else stays as it is, to the bit.

        Args:
            image: a square picture; it is resized to what the model draws.
            mask: of one channel (mode "1" or "L"), as large as the picture; above half is white.
            prompt: what the whole picture shows then.
            method: "trained" uses the network trained for this (section 3.2), `inpaint` or the decoder itself;
                "replaced" the decoder, shown nothing, with what is known written into every step; "auto" the former
                where there is one.
            blend: pixels over which the old picture fades into the new one around the mask; 0 for a hard edge.

        Others as in a call; stages are inpaint and inpaint_upsampler (upsampler where that is missing), or decoder and
        upsampler where the decoder inpaints or when "replaced".
        """
        plan = self.plan(steps, guidance, sampler, stop_after, self._inpainting(method))
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers(plan))
        sizes = [self._config(stage).image_size for stage in plan.sampling]
        known = read_known(image, mask, size=sizes[-1], base=sizes[0], blend=blend).to(self.device)
        known = replace(known, shown=method != "replaced")
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress, brought=known)
        return self._output(call, cut, task="inpaint")

    def edit(
        self,
        image: Image,
        prompt: Prompts,
        strength: float = 0.7,
        *,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | ByStage | None = None,
        guidance: float | ByStage | None = None,
        sampler: str | ByStage | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw `prompt`, starting from a noised picture (Meng et al. 2021, arXiv 2108.01073).

        Args:
            image: a square picture; its composition stays, the more the lower the strength.
            strength: share of the decoder's steps that are taken, from 0, the small picture as it is, to 1.

        Others as in a call.
        """
        plan = self.plan(steps, guidance, sampler, stop_after)
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers(plan))
        start = read_start(image, strength, self._config("decoder").image_size).to(self.device)
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress, brought=start)
        return self._output(call, cut, task="edit")

    def _draw(self, call: Call) -> Tensor:
        """The story itself: pictures (N, 3, S, S) in [-1, 1]."""
        first, *rest = call.sampling
        with call.bar:
            x = self.each(call, first, self._decoder)  # (N, 3, 64, 64)
            for stage in rest:
                x = self.each(call, stage, self._upsampler, x)  # (N, 3, 256, 256)
        return x

    def _decoder(self, call: Call, stage: str, rows: slice, on_step: Any, _: Tensor | None) -> Tensor:
        sampling, num = call.sampling[stage], rows.stop - rows.start
        model: Decoder = self.parts[stage]  # type: ignore[assignment]
        known = self._known(call, model.config, num)
        condition = model.condition(*self._tokens(call.rows["prompt"][rows]), known=known)
        null = None
        if sampling.guidance != 1:
            null = model.condition(*self._tokens(call.rows["negative_prompt"][rows]), known=known)
        steering = self.brought(call, stage, num)
        if scale := call.steering.get("clip", 0.0):
            steering = replace(steering, gradient=self._clip_gradient(call, rows), gradient_scale=scale)
        streams = Streams(call.seeds[rows], stage)
        return decoder.sample(model, condition, streams, sampling, null=null, steering=steering, callback=on_step)

    def _upsampler(self, call: Call, stage: str, rows: slice, on_step: Any, low_res: Tensor) -> Tensor:
        model: Upsampler = self.parts[stage]  # type: ignore[assignment]
        c, num = model.config, rows.stop - rows.start
        tokens, mask = self._tokens(call.rows["prompt"][rows]) if c.text is not None else (None, None)
        known = self._known(call, c, num)
        condition = model.condition(upsampler.quantised(model, low_res), tokens, mask, known=known)
        steering, streams = self.brought(call, stage, num), Streams(call.seeds[rows], stage)
        return upsampler.sample(model, condition, streams, call.sampling[stage], steering=steering, callback=on_step)

    def _known(self, call: Call, config: Any, num: int) -> tuple[Tensor, Tensor] | None:
        """What a network that was trained to inpaint is shown."""
        known = call.brought if isinstance(call.brought, Known) and call.brought.shown else None
        return known.at(config.image_size, num) if known and config.inpaint else None

    def _clip_gradient(self, call: Call, rows: slice) -> Any:
        """∇ of the similarity of x_t and the prompts, for `Steering`."""
        clip: NoisedClip = self.parts["clip"]  # type: ignore[assignment]
        tokens, mask = (x.to(self.device) for x in clip.tokenize(call.rows["prompt"][rows]))
        z_t = clip.encode_text(tokens, mask)  # (B, D)
        return lambda x_t, t: clip.similarity_gradient(x_t, t, z_t)

    # -- what surrounds the story --------------------------------------------------------------------------------------

    def _readers(self, plan: Plan) -> list[Tokenizer]:
        """What reads prompts: the network, and CLIP where it steers."""
        clip: Any = self.parts.get("clip")
        return [self._tokenizer] + ([clip.tokenizer] if plan.steering.get("clip", 0.0) else [])

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = tokenize(self._tokenizer, texts)
        return tokens.to(self.device), mask.to(self.device)

    def _output(self, call: Call, cut: list[bool], task: str | None = None) -> Output:
        """Run a call."""
        x = self._draw(call)
        if isinstance(call.brought, Known):
            x = call.brought.paste(x)
        recipe = self.recipe(call, task)
        return Output(to_pil(x), call.seeds, call.rows["prompt"], recipe, timings=call.timings, truncated=cut)

    def _inpainting(self, method: str) -> tuple[str, str] | None:
        """Stages that inpaint, None for those that draw: networks that were not trained for it have what is known
        written into every step."""
        if method not in ("auto", "trained", "replaced"):
            raise UsageError(f"unknown method {method!r}; known are auto, trained and replaced")
        if method == "trained" and "inpaint" not in self.parts and not self._config("decoder").inpaint:
            raise UsageError("this model has no network that was trained to inpaint; use method='replaced'")
        if method == "replaced":
            return None
        return _painter(self.parts), "inpaint_upsampler" if "inpaint_upsampler" in self.parts else "upsampler"


def _painter(parts: Mapping[str, Any]) -> str:
    """The stage that inpaints: of its own, or the decoder."""
    return "inpaint" if "inpaint" in parts else "decoder"


def _check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if parts do not belong together."""
    for name, part in parts.items():
        c = part.config
        if name == "clip":
            continue
        if c.num_classes is not None or getattr(c, "clip_dim", None) is not None:
            raise DataError(f"{name} needs a class or an embedding, which a sentence does not give")
        if c.inpaint != name.startswith("inpaint") and name != "decoder":
            raise DataError(f"{name} was trained with inpaint={c.inpaint}")
    base = parts["decoder"].config
    if base.text is None or base.tokenizer is None:
        raise DataError("decoder reads no captions")
    if "inpaint" in parts and parts["inpaint"].config.text is None:
        raise DataError("inpaint reads no captions")
    for name, facts in (("inpaint", ("image_size",)), ("clip", ("image_size", "schedule", "num_steps"))):
        for fact in facts if name in parts else ():
            ours, theirs = getattr(base, fact), getattr(parts[name].config, fact)
            if ours != theirs:
                raise DataError(f"{name} was trained with {fact}={theirs}, decoder with {ours}: they do not fit")
    if "clip" in parts and base.rescale_timesteps:
        raise DataError("clip knows whole timesteps, decoder was trained with rescale_timesteps=True: they do not fit")
    if "inpaint_upsampler" in parts and not parts[_painter(parts)].config.inpaint:
        raise DataError("inpaint_upsampler without inpaint")
    for small, large in (("decoder", "upsampler"), (_painter(parts), "inpaint_upsampler")):
        if large in parts and parts[large].config.low_size != parts[small].config.image_size:
            raise DataError(
                f"{large} takes pictures of side {parts[large].config.low_size}, but {small} gives "
                f"{parts[small].config.image_size}"
            )
    for name in ("upsampler", "inpaint", "inpaint_upsampler"):
        if name in parts and parts[name].config.text is not None and parts[name].config.tokenizer != base.tokenizer:
            raise DataError(f"{name} was trained with another tokeniser than decoder")
