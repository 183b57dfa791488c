"""DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125): a sentence becomes a picture in four steps.

    sentence y ──CLIP text tower──▶ z_t
    (y, z_t)   ──prior────────────▶ z_i, the CLIP embedding of a picture that fits        P(z_i | y)
    (z_i, y)   ──decoder──────────▶ the picture at 64 × 64                                P(x | z_i, y)
    64 × 64    ──upsampler────────▶ 256 × 256 ──upsampler──▶ 1024 × 1024

What it does with pictures stands in `manipulations.py`, and how else it can be called in `variants.py`.

Legend: N pictures · D width of CLIP embeddings · S side of a picture in pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError, did_you_mean, explain
from t2i.core.seed import Streams
from t2i.core.types import Condition, TextFeatures, Tokenizer
from t2i.hub.hub import presets
from t2i.io.images import to_pil
from t2i.pipeline.inputs import Known, Latent, Start
from t2i.pipeline.request import Call, Callback, Output, Plan, sentences
from t2i.pipelines.variants import Variants
from t2i.stages.ar_prior import sample as ar_prior
from t2i.stages.ar_prior.model import ArPrior
from t2i.stages.dalle2_pytorch.decoder import sample as laion_decoder
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder
from t2i.stages.dalle2_pytorch.prior import sample as laion_prior
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior
from t2i.stages.decoder import sample as decoder
from t2i.stages.decoder.model import Decoder
from t2i.stages.prior import sample as prior
from t2i.stages.prior.model import Prior
from t2i.stages.upsampler import sample as upsampler
from t2i.stages.upsampler.model import Upsampler
from t2i.text.tokenizers import tokenize

_SAME_CLIP = 0.98  # cosine of two marks; rounding to 8 bits moves it by less than a hundredth


class DALLE2(Variants):
    """`pipe("a red cube")`. Stages that draw: prior, decoder, up256, up1024; a model may stop earlier."""

    kind = "dalle2"
    subject = "prompt"
    number = "num_images_per_prompt"
    drawing = ("prior", "decoder", "up256", "up1024")
    places: ClassVar = {
        "clip": "clip",
        "prior": "prior",
        "decoder": "decoder",
        "up256": "upsampler",
        "up1024": "upsampler",
    }
    alternatives: ClassVar = {  # as model_index.json says; the paper has both priors
        "prior": ("ar_prior", "laion_prior"),
        "decoder": ("laion_decoder",),
    }
    defaults: ClassVar = {  # those of small networks; Table 3 has 64, 250, 27 and 15 steps, and ddpm in the decoder
        "steps": {"prior": 25, "decoder": 20, "up256": 10, "up1024": 6},
        "guidance": {"prior": 2.0, "decoder": 3.0},
        "sampler": {"prior": "ddpm", "decoder": "ddim", "up256": "ddim", "up1024": "ddim"},
        "candidates": {"prior": 2},  # embeddings, of which the better is kept (section 2.2)
    }
    optional: ClassVar = frozenset({"prior"})  # without one a model varies pictures and draws no sentences

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        super().__init__(parts, settings, source)
        _check_fit(self.parts)
        self.plan()
        spelled = getattr(self._config("decoder"), "tokenizer", None) if "decoder" in self.parts else None
        self._tokenizer = spelled.build() if spelled is not None else None

    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
        max_tile: int | None = None,
    ) -> Output:
        """Draw pictures.

        Args:
            prompt: one sentence or several; the order of pictures is prompt by prompt.
            negative_prompt: what guidance moves away from, in the prior and in the decoder, instead of nothing; one
                sentence for all, or one for each prompt.
            seed: picture i uses seed + i, or the i-th of a list; drawn at random, and told, if None.
            steps, guidance, sampler: one value, or a dict by stage; guidance acts in the prior and the decoder, a
                sampler is one of ddpm, ddim and dpm_solver_pp_2m.
            stop_after: the last stage to run; "decoder" gives 64 px pictures, "prior" embeddings only.
            callback: called with `Progress` after every step; its `preview()` is the present guess.
            progress: show a bar on stderr, where that is a terminal or a notebook.
            max_batch: pictures that are drawn at once, at most; costly stages take fewer.
            max_tile: pixels of a side that an upsampler sees at once, at most: larger pictures are drawn in tiles that
                overlap, in less memory. None for whole pictures.

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        plan = self.plan(steps, guidance, sampler, stop_after)
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers)
        call = self.begin(
            rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress, max_tile=max_tile
        )
        return self._output(call, cut)

    def _draw(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The story itself: embeddings (N, D), and pictures (N, 3, S, S) in [-1, 1] unless it stops before."""
        if isinstance(call.brought, Latent | Tensor):
            z_i, x = (call.brought.z_i if isinstance(call.brought, Latent) else call.brought).to(self.device), None
        elif "prior" in call.sampling:
            z_i, x = self.each(call, "prior", self._prior), None  # (N, D)
        else:
            raise UsageError("this model has no prior, so it draws no sentences; it makes variations of pictures")
        if "decoder" in call.sampling:
            x = self.each(call, "decoder", self._decoder, z_i)  # (N, 3, 64, 64)
        for stage in (name for name in call.sampling if self.places[name] == "upsampler"):
            x = self.each(call, stage, self._upsampler, x)  # (N, 3, 256, 256), (N, 3, 1024, 1024)
        return z_i, x

    def _prior(self, call: Call, stage: str, rows: slice, on_step: Any, _: Tensor | None) -> Tensor:
        sampling = call.sampling[stage]
        with self.awake("clip"):
            text = self.clip.encode_text(call.rows["prompt"][rows])
            null = self.clip.encode_text(call.rows["negative_prompt"][rows]) if sampling.guidance != 1 else None
        streams = Streams(call.seeds[rows], stage)
        model = self.parts["prior"]
        if isinstance(model, ArPrior):
            return ar_prior.sample(model, text, streams, sampling.guidance, null=null, callback=on_step)
        num = self.settings["candidates"]["prior"]
        if isinstance(model, LaionPrior):
            if any(call.rows["negative_prompt"][rows]):
                raise UsageError("LAION's prior knows no negative prompts")
            return laion_prior.sample(model, text, streams, sampling, num_candidates=num, callback=on_step)
        assert isinstance(model, Prior)
        return prior.sample(model, text, streams, sampling, null=null, num_candidates=num, callback=on_step)

    def _decoder(self, call: Call, stage: str, rows: slice, on_step: Any, z_i: Tensor) -> Tensor:
        sampling, model = call.sampling[stage], self.parts["decoder"]
        prompts, negatives = call.rows["prompt"][rows], call.rows["negative_prompt"][rows]
        steering, streams = self.brought(call, stage, len(z_i)), Streams(call.seeds[rows], stage)
        x_T = call.brought.x_T[rows] if isinstance(call.brought, Latent) else None
        if isinstance(model, LaionDecoder):
            if any(negatives):
                raise UsageError("LAION's decoder knows no negative prompts")
            told = model.condition(z_i, self._states(prompts)[0]) if any(prompts) else self._wordless(z_i)
            null = model.null_condition(len(z_i)) if sampling.guidance != 1 else None
            changed = steering if isinstance(call.brought, Known | Start) else None
            return laion_decoder.sample(
                model, told, null, streams, sampling, steering=changed, x_T=x_T, callback=on_step
            )
        assert isinstance(model, Decoder)
        said, unsaid = self._states(prompts, negatives)
        condition = model.condition(*self._tokens(prompts), z_i, clip_text=said)
        null = None
        if sampling.guidance != 1:
            drop = torch.zeros(len(z_i), dtype=torch.bool, device=z_i.device)
            null = model.condition(*self._tokens(negatives), z_i, clip_text=unsaid, clip_keep=drop)
        return decoder.sample(
            model, condition, streams, sampling, null=null, steering=steering, x_T=x_T, callback=on_step
        )

    def _upsampler(self, call: Call, stage: str, rows: slice, on_step: Any, low_res: Tensor) -> Tensor:
        model: Upsampler = self.parts[stage]  # type: ignore[assignment]
        condition = model.condition(upsampler.quantised(model, low_res))
        steering, streams = self.brought(call, stage, len(low_res)), Streams(call.seeds[rows], stage)
        sampling, max_tile = call.sampling[stage], call.max_tile
        return upsampler.sample(
            model, condition, streams, sampling, steering=steering, max_tile=max_tile, callback=on_step
        )

    # -- what surrounds the story --------------------------------------------------------------------------------------

    def follow(self, preset: str) -> None:
        """Sample as others sample this chain: steps, guidance, samplers and candidates of the stages that they have,
        how far the prior's standardised x_0 is clamped, and the variance of its steps.

        All of them guide by null + s · (conditional - null) before they clamp; null is the empty sentence, or what
        LAION's networks take for none. What is not theirs is the noise: a picture's is drawn from its own seed,
        whatever the batch, so seeds do not carry over. A prior of codes, or LAION's, clamps nothing. A prior that
        `t2i calibrate` has not measured keeps its variances under "paper", with a warning; the others forget what it
        measured.

        Args:
            preset: "karlo" (clamp 10), "diffusers" (5, and fewer steps), "laion" (none) or "paper" (none; Ramesh et
                al. 2022, table 3). What a preset says of stages that are not there is left out.

        Raises UsageError for an unknown name, and for steps that a stage of this model cannot take.
        """
        known = presets()
        if preset not in known:
            raise UsageError(f"unknown preset {preset!r}; known: {', '.join(known)}{did_you_mean(preset, known)}")
        own, theirs = self.settings, known[preset]["settings"]  # type: ignore[has-type]
        chosen = self._completed({what: {**own[what], **theirs.get(what, {})} for what in own})
        try:
            DALLE2(self.parts, chosen)
        except UsageError as error:
            raise UsageError(f"preset {preset!r} is not for this model: {error}") from error
        if isinstance(drawn := self.parts.get("prior"), Prior):
            changes = dict(known[preset]["prior"])
            if changes["variance"] != "analytic":
                drawn.x_0_variance = None
            elif drawn.x_0_variance is None:
                changes["variance"] = drawn.config.variance
                warnings.warn(
                    f"preset {preset!r}: this prior lacks the variances that t2i calibrate measures", stacklevel=2
                )
            drawn.config = drawn.config.model_copy(update=changes)
        self.settings, self.preset = chosen, preset

    def plan(self, *given: Any, **named: Any) -> Plan:
        """As in `Pipeline`; UsageError also for steps and samplers that LAION's networks do not know."""
        plan = super().plan(*given, **named)
        for stage, chosen in plan.sampling.items():
            part = self.parts[stage]
            if isinstance(part, LaionPrior | LaionDecoder):
                with explain(f"steps of {stage}", UsageError):
                    kind = laion_prior if isinstance(part, LaionPrior) else laion_decoder
                    kind.check(part, chosen)
        return plan

    @property
    def _readers(self) -> list[Tokenizer]:
        """What reads prompts: CLIP, and the decoder itself if it has a text path."""
        return [self.clip.tokenizer] + ([self._tokenizer] if self._tokenizer is not None else [])

    def _output(self, call: Call, cut: list[bool], task: str | None = None) -> Output:
        """Run a call."""
        with call.bar:
            z_i, x = self._draw(call)
        if x is not None and isinstance(call.brought, Known):
            x = call.brought.paste(x)
        return Output(
            images=to_pil(x) if x is not None else [],
            seeds=call.seeds,
            prompts=call.rows["prompt"],
            recipe=self.recipe(call, task),
            embeddings=z_i.cpu(),
            timings=call.timings,
            truncated=cut,
        )

    def _wordless(self, z_i: Tensor) -> Condition:
        texts, model = [""] * len(z_i), self.parts["decoder"]
        if isinstance(model, LaionDecoder):
            return model.condition(z_i)
        return model.condition(*self._tokens(texts), z_i, clip_text=self._states(texts)[0])  # type: ignore[operator]

    def _tokens(self, texts: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and mask for the decoder's own text path, if it has one."""
        if self._tokenizer is None:
            return None, None
        tokens, mask = tokenize(self._tokenizer, texts)
        return tokens.to(self.device), mask.to(self.device)

    def _states(self, *texts: list[str]) -> list[TextFeatures | None]:
        """What CLIP says of sentences, all of one length, if the decoder reads that."""
        if self._config("decoder").clip_text_width is None:
            return [None] * len(texts)
        with self.awake("clip"):
            read = [self.clip.encode_text(sentences) for sentences in texts]
        return [features.padded(max(f.mask.shape[1] for f in read)) for features in read]


def _check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if a stage was trained beside another one than its neighbour in this chain."""

    def same(what: str, giver: str, given: float, taker: str, taken: float | None) -> None:
        if given != taken:
            raise DataError(f"{taker} takes {what} {taken}, but {giver} gives {given}: they do not belong together")

    clip = parts["clip"]
    if not parts.keys() & {"prior", "decoder"}:
        raise UsageError("the chain clip → prior lacks prior")
    if "prior" in parts:
        prior = parts["prior"].config
        same("embeddings of width", "clip", clip.dim, "prior", prior.clip_dim)
        same("text states of width", "clip", clip.text_width, "prior", prior.text_width)
        same("embeddings of unit_norm", "clip", clip.config.unit_norm, "prior", prior.unit_norm)
        if (context := clip.config.tokenizer.context) > prior.context:
            raise DataError(f"prior reads {prior.context} tokens, but clip gives {context}")
    mark = torch.tensor(clip.mark())
    for name in ("prior", "decoder"):
        theirs = torch.tensor(parts[name].config.clip_mark if name in parts else ())
        if len(theirs) and (len(theirs) != len(mark) or torch.cosine_similarity(mark, theirs, dim=0) < _SAME_CLIP):
            raise DataError(f"{name} was trained with another CLIP than this one: they do not belong together")
    if "decoder" in parts:
        decoder = parts["decoder"].config
        same("embeddings of width", "clip", clip.dim, "decoder", decoder.clip_dim)
        if decoder.clip_text_width is not None:
            same("text states of width", "clip", clip.text_width, "decoder", decoder.clip_text_width)
    for small, large in (("decoder", "up256"), ("up256", "up1024")):
        if large in parts:
            same("pictures of side", small, parts[small].config.image_size, large, parts[large].config.low_size)
            if parts[large].config.text is not None:
                raise DataError(f"{large} reads text; upsamplers of this chain see pictures only")
    for name, part in parts.items():
        if getattr(part.config, "num_classes", None) is not None:
            raise DataError(f"{name} needs a class label, which a sentence does not give")
