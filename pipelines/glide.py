"""GLIDE (Nichol et al. 2021, arXiv 2112.10741): one text-conditional diffusion network, enlarged by a second.

    sentence y ──▶ decoder, classifier-free guidance ──▶ 64 × 64 ──▶ upsampler, told y ──▶ 256 × 256
                     ▲
    noised CLIP ─────┘  instead: every step moves along ∇ ⟨z_t(y), z_i(x_t, t)⟩

    inpaint: networks that also see the picture without its masked part, and the mask; or any decoder, whose idea of
    x_0 is overwritten at every step with what is known. edit: sampling starts from a noised picture.

Legend: N pictures · S side of a picture in pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from t2i.call import Call, Callback, Output, Plan, negatives_of, prompts_of, repeated, whole
from t2i.diffusion.inpaint import keep_known
from t2i.diffusion.sampling import Steering
from t2i.errors import DataError, UsageError
from t2i.images import pasted, square, square_mask, to_pil
from t2i.pipeline import Pipeline
from t2i.seed import Streams
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
    inpainting = ("inpaint", "inpaint_upsampler")
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
        rows, cut = self._rows(prompt, negative_prompt, num_images_per_prompt, plan)
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress)
        return self._output(call, self._draw(call), cut)

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
            method: "trained" uses the networks trained for this (section 3.2), "replaced" the ordinary decoder, with
                what is known written into every step; "auto" the former where the model has them.
            blend: pixels over which the old picture fades into the new one around the mask; 0 for a hard edge.

        Others as in a call; stages are inpaint and inpaint_upsampler, or decoder and upsampler when "replaced".
        """
        trained = self._trained(method)
        plan = self.plan(steps, guidance, sampler, stop_after, self.inpainting if trained else None)
        rows, cut = self._rows(prompt, negative_prompt, num_images_per_prompt, plan)
        last = self._config(list(plan.sampling)[-1]).image_size
        if not 0 <= blend <= last:
            raise UsageError(f"blend must be a number of pixels from 0 to {last}, got {blend}")
        known, fresh = square(image, last), square_mask(mask, image, last)  # (3, S, S) (1, S, S)
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress)
        x = self._draw(call, known.to(self.device), fresh.to(self.device))
        return self._output(call, pasted(x.cpu(), known, fresh, blend), cut, task="inpaint")

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
        if not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise UsageError(f"strength must be a number from 0 to 1, got {strength!r}")
        plan = self.plan(steps, guidance, sampler, stop_after)
        rows, cut = self._rows(prompt, negative_prompt, num_images_per_prompt, plan)
        start = square(image, self._config("decoder").image_size).to(self.device)
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress)
        edited = partial(self._decoder, start=start, strength=float(strength))
        return self._output(call, self._draw(call, decode=edited), cut, task="edit")

    def _draw(self, call: Call, known: Tensor | None = None, fresh: Tensor | None = None, decode: Any = None) -> Tensor:
        """The story itself: pictures (N, 3, S, S) in [-1, 1]; `known` (3, S, S) and `fresh` (1, S, S) to inpaint."""
        first, *rest = call.sampling
        small = None
        if known is not None and fresh is not None:
            small = _kept(known, fresh, self._config(first).image_size, self._config(first).image_size)
        with call.bar:
            x = self.each(call, first, decode or partial(self._decoder, known=small))  # (N, 3, 64, 64)
            for stage in rest:
                large = None
                if known is not None and fresh is not None:
                    large = _kept(known, fresh, self._config(first).image_size, self._config(stage).image_size)
                x = self.each(call, stage, partial(self._upsampler, known=large), x)  # (N, 3, 256, 256)
        return x

    def _decoder(
        self,
        call: Call,
        stage: str,
        rows: slice,
        on_step: Any,
        _: Tensor | None,
        *,
        known: tuple[Tensor, Tensor] | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        sampling, num = call.sampling[stage], rows.stop - rows.start
        model: Decoder = self.parts[stage]  # type: ignore[assignment]
        seen = _each_row(known, num) if model.config.inpaint else None
        condition = model.condition(*self._tokens(call.rows["prompt"][rows]), known=seen)
        null = None
        if sampling.guidance != 1:
            null = model.condition(*self._tokens(call.rows["negative_prompt"][rows]), known=seen)
        steering = Steering(
            processed=keep_known(*_each_row(known, num)) if known is not None else None,
            gradient=self._clip_gradient(call, rows),
            gradient_scale=call.steering.get("clip", 0.0),
            start=start.expand(num, -1, -1, -1) if start is not None else None,
            strength=strength,
        )
        streams = Streams(call.seeds[rows], stage)
        return decoder.sample(model, condition, streams, sampling, null=null, steering=steering, callback=on_step)

    def _upsampler(
        self,
        call: Call,
        stage: str,
        rows: slice,
        on_step: Any,
        low_res: Tensor,
        *,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        model: Upsampler = self.parts[stage]  # type: ignore[assignment]
        num = rows.stop - rows.start
        tokens, mask = self._tokens(call.rows["prompt"][rows]) if model.config.text is not None else (None, None)
        seen = _each_row(known, num) if model.config.inpaint else None
        condition = model.condition(upsampler.quantised(model, low_res), tokens, mask, known=seen)
        steering = Steering(processed=keep_known(*_each_row(known, num)) if known is not None else None)
        streams = Streams(call.seeds[rows], stage)
        return upsampler.sample(model, condition, streams, call.sampling[stage], steering=steering, callback=on_step)

    def _clip_gradient(self, call: Call, rows: slice) -> Any:
        """∇ of the similarity of x_t and the prompts, for `Steering`; None where CLIP does not steer."""
        if call.steering.get("clip", 0.0) == 0:
            return None
        clip: NoisedClip = self.parts["clip"]  # type: ignore[assignment]
        tokens, mask = (x.to(self.device) for x in clip.tokenize(call.rows["prompt"][rows]))
        z_t = clip.encode_text(tokens, mask)  # (B, D)
        return lambda x_t, t: clip.similarity_gradient(x_t, t, z_t)

    # -- what surrounds the story --------------------------------------------------------------------------------------

    def _tokens(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = tokenize(self._tokenizer, sentences)
        return tokens.to(self.device), mask.to(self.device)

    def _rows(
        self, prompt: Prompts, negative_prompt: Prompts | None, num_images_per_prompt: int, plan: Plan
    ) -> tuple[dict[str, list[str]], list[bool]]:
        """Prompts and negative prompts of every picture, and which prompts are longer than what is read."""
        prompts, truncated = prompts_of(prompt, self._tokenizer)
        negatives = negatives_of(negative_prompt, len(prompts), self._tokenizer)
        num = whole("num_images_per_prompt", num_images_per_prompt)
        if any(negatives) and all(chosen.guidance == 1 for chosen in plan.sampling.values()):
            warnings.warn("a negative prompt says nothing where guidance is 1", stacklevel=3)
        rows = {"prompt": repeated(prompts, num), "negative_prompt": repeated(negatives, num)}
        return rows, repeated(truncated, num)

    def _output(self, call: Call, x: Tensor, truncated: list[bool], task: str | None = None) -> Output:
        recipe = self.recipe(call)
        if task is not None:
            recipe["task"] = task  # needs a picture, so a recipe alone does not repeat it
        return Output(to_pil(x), call.seeds, call.rows["prompt"], recipe, timings=call.timings, truncated=truncated)

    def _trained(self, method: str) -> bool:
        if method not in ("auto", "trained", "replaced"):
            raise UsageError(f"unknown method {method!r}; known are auto, trained and replaced")
        if method == "trained" and "inpaint" not in self.parts:
            raise UsageError("this model has no network that was trained to inpaint; use method='replaced'")
        return method != "replaced" and "inpaint" in self.parts


def _kept(known: Tensor, fresh: Tensor, base: int, size: int) -> tuple[Tensor, Tensor]:
    """What networks that draw `size` pixels are told of a picture (3, S, S) and of the mask (1, S, S) of what is fresh:
    the picture, and a mask of what is kept that has the places of the first network, `base`, as GLIDE's."""
    picture = F.interpolate(known[None], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    kept = 1 - F.adaptive_max_pool2d(fresh[None], base)  # a place that is fresh in part is fresh
    return picture, F.interpolate(kept, size=size, mode="nearest")[0]


def _each_row(known: tuple[Tensor, Tensor] | None, num: int) -> Any:
    return None if known is None else tuple(x.expand(num, -1, -1, -1) for x in known)


def _check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if parts do not belong together."""
    for name, part in parts.items():
        c = part.config
        if name == "clip":
            continue
        if c.num_classes is not None or getattr(c, "clip_dim", None) is not None:
            raise DataError(f"{name} needs a class or an embedding, which a sentence does not give")
        if c.inpaint != name.startswith("inpaint"):
            raise DataError(f"{name} was trained with inpaint={c.inpaint}")
    base = parts["decoder"].config
    if base.text is None or base.tokenizer is None:
        raise DataError("decoder reads no captions")
    for name in ("inpaint", "clip"):
        if name in parts and parts[name].config.image_size != base.image_size:
            raise DataError(f"{name} sees {parts[name].config.image_size} pixels, but decoder {base.image_size}")
    for small, large in (("decoder", "upsampler"), ("inpaint", "inpaint_upsampler")):
        if large in parts and small not in parts:
            raise DataError(f"{large} without {small}")
        if large in parts and parts[large].config.low_size != parts[small].config.image_size:
            raise DataError(
                f"{large} takes pictures of side {parts[large].config.low_size}, but {small} gives "
                f"{parts[small].config.image_size}"
            )
    for name in ("upsampler", "inpaint", "inpaint_upsampler"):
        if name in parts and parts[name].config.text is not None and parts[name].config.tokenizer != base.tokenizer:
            raise DataError(f"{name} was trained with another tokeniser than decoder")
