"""DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125): a sentence becomes a picture in four steps.

    sentence y ──CLIP text tower──▶ z_t
    (y, z_t)   ──prior────────────▶ z_i, the CLIP embedding of a picture that fits        P(z_i | y)
    (z_i, y)   ──decoder──────────▶ the picture at 64 × 64                                P(x | z_i, y)
    64 × 64    ──upsampler────────▶ 256 × 256 ──upsampler──▶ 1024 × 1024

What it does with pictures stands in `latents.py`, `manipulations.py`, `inpaint.py` and `upsample.py`.

Legend: N pictures · D width of CLIP embeddings · S side of a picture in pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted
from t2i.core.types import TextFeatures, Tokenizer
from t2i.hub.index import presets
from t2i.pipeline.arguments import Draw, Prompts, prompt_rows
from t2i.pipeline.base import Pipeline
from t2i.pipeline.inputs import Latent
from t2i.pipeline.output import Output
from t2i.pipeline.placement import on_device
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Slot, complete_settings
from t2i.pipeline.upsampled import upsampled
from t2i.pipelines import inpaint, latents, manipulations, upsample
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.follow import same_neighbour
from t2i.stages.registry import stage_of
from t2i.stages.stage import ClipFacts


class DALLE2(Pipeline):
    """`pipe("a red cube")`. Stages that draw: prior, decoder, up256, up1024; a model may stop earlier.

    Steps are those of small networks; Table 3 has 64, 250, 27 and 15, and ddpm in the decoder.
    """

    kind, subject, number = "dalle2", "prompt", "num_images_per_prompt"
    slots = (
        Slot("clip", ("clip",), role="reads"),
        Slot("prior", ("prior", "ar_prior", "laion_prior"), optional=True, steps=25, sampler="ddpm", guided=True,
             guidance=2.0, candidates=2),  # without one a model varies pictures; two are drawn, the better kept
        Slot("decoder", ("decoder", "laion_decoder"), steps=20, sampler="ddim", guided=True, guidance=3.0),
        Slot("up256", ("upsampler",), steps=10, sampler="ddim"),
        Slot("up1024", ("upsampler",), steps=6, sampler="ddim"),
    )  # fmt: skip
    sampled = ("prior", "decoder", "up256", "up1024")

    def __call__(
        self,
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        upsample_prompt: str | None = None,
        **draw: Unpack[Draw],
    ) -> Output:
        """Draw pictures.

        Args:
            prompt: one sentence or several; the order of pictures is prompt by prompt.
            negative_prompt: what guidance moves away from, in the prior and in the decoder, instead of nothing; one
                sentence for all, or one for each prompt.
            upsample_prompt: draw what is written from the prompt, see `upsampled`.
            draw: see `Draw`; guidance acts in the prior and the decoder, and stop_after="prior" gives embeddings only.

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        prompt, asked = upsampled(self, prompt, upsample_prompt)
        texts = prompt_rows(prompt, negative_prompt, num_images_per_prompt, self.readers, asked)
        return self.run(self.request(draw, texts=texts))

    def run(self, r: Request) -> Output:
        """The story itself."""
        with r:
            z_i, x = self._embeddings(r), None  # (N, D)
            if "decoder" in r.sampling:
                x = r.draw("decoder", z_i=z_i)  # (N, 3, 64, 64)
            for stage in ("up256", "up1024"):
                if stage in r.sampling and x is not None:
                    x = r.draw(stage, low_res=x)  # (N, 3, 256, 256), (N, 3, 1024, 1024)
        return r.output(x, embeddings=z_i)

    def _embeddings(self, r: Request) -> Tensor:
        """Those that a picture was taken apart into or that were given, or what the prior draws."""
        if isinstance(r.source, Latent | Tensor):
            return (r.source.z_i if isinstance(r.source, Latent) else r.source).to(self.device)
        if "prior" not in r.sampling:
            raise UsageError("this model has no prior, so it draws no sentences; it makes variations of pictures")
        return r.draw("prior")

    # -- what surrounds the story --------------------------------------------------------------------------------------

    @property
    def clip(self) -> ClipEncoder:
        """The frozen CLIP model that the prior and the decoder were trained with."""
        clip: ClipEncoder = self.parts["clip"]
        return clip

    @property
    def readers(self) -> list[Tokenizer]:
        """What reads prompts: CLIP, and the decoder itself if it has a text path."""
        decoder = self.parts.get("decoder")
        return [self.clip.tokenizer] + (stage_of(decoder).readers(decoder) if decoder is not None else [])

    def readers_of(self, scales: Mapping[str, float]) -> list[Tokenizer]:
        """The same, whatever guides."""
        return self.readers

    def encode_texts(self, *texts: Sequence[str]) -> list[TextFeatures]:
        """What CLIP says of lists of sentences."""
        with on_device(self, "clip"):
            return [self.clip.encode_text(captions) for captions in texts]

    def use_preset(self, preset: str) -> None:
        """Sample as "karlo", "diffusers", "laion" or the "paper" (table 3) do, see `with_preset`."""
        self.settings, self.preset = with_preset(self, preset), preset

    def check_fit(self) -> None:
        check_fit(self.parts)

    inpaint, edit, upsample = inpaint.inpaint, inpaint.edit, upsample.upsample
    embed, encode, decode = latents.embed, latents.encode, latents.decode
    reconstruct, variations = manipulations.reconstruct, manipulations.variations
    interpolate, text_diff, probe = manipulations.interpolate, manipulations.text_diff, manipulations.probe


def with_preset(pipe: DALLE2, preset: str) -> dict[str, dict[str, Any]]:
    """Settings to sample as others sample this chain: steps, guidance, samplers and candidates of the stages that they
    have, how far the prior's standardised x_0 is clamped, and the variance of its steps. The networks stay as they are.

    All of them guide by null + s · (conditional - null) before they clamp; null is the empty sentence, or what LAION's
    networks take for none. What is not theirs is the noise: a picture's is drawn from its own seed, whatever the batch,
    so seeds do not carry over. A prior of codes, or LAION's, clamps nothing. A prior that `t2i calibrate` has not
    measured keeps its variances under "paper", with a warning.

    Raises UsageError for an unknown name, and for steps that a stage of this model cannot take.
    """
    choices = presets()
    if not isinstance(preset, str) or preset not in choices:
        raise UsageError(f"unknown preset {quoted(preset)}; known: {', '.join(choices)}{did_you_mean(preset, choices)}")
    theirs: dict[str, dict[str, Any]] = dict(choices[preset].settings)
    prior = pipe.parts.get("prior")
    if prior is not None and stage_of(prior).name == "prior":
        clamp, variance = choices[preset].prior.clamp, choices[preset].prior.variance
        theirs |= {"clamp": {"prior": clamp or False}, "variance": {"prior": variance}}
        if variance == "analytic" and prior.x_0_variance is None:
            theirs["variance"] = {"prior": None}
            message = f"preset {preset!r}: this prior lacks the variances that t2i calibrate measures"
            warnings.warn(message, stacklevel=3)
    names = {*pipe.settings, *theirs}
    chosen = {what: {**pipe.settings.get(what, {}), **theirs.get(what, {})} for what in names}
    try:
        settings = complete_settings(pipe.slots, pipe.parts, chosen)
        type(pipe)(pipe.parts, settings)
    except UsageError as error:
        raise UsageError(f"preset {preset!r} is not for this model: {error}") from error
    return settings


def check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if a stage was trained beside another one than its neighbour in this chain."""
    if not parts.keys() & {"prior", "decoder"}:
        raise UsageError("the chain clip → prior lacks prior")
    for name in ("prior", "decoder"):
        if name in parts:
            _check_clip(parts["clip"], name, parts[name])
    for small, large in (("decoder", "up256"), ("up256", "up1024")):
        if large in parts:
            _same("pictures of side", small, parts[small].config.image_size, large, parts[large].config.low_size)
            if parts[large].config.ports.text is not None:
                raise DataError(f"{large} reads text; upsamplers of this chain see pictures only")
    for name, part in parts.items():
        if (ports := getattr(part.config, "ports", None)) is not None and ports.classes is not None:
            raise DataError(f"{name} needs a class label, which a sentence does not give")


def _check_clip(clip: ClipEncoder, name: str, part: nn.Module) -> None:
    """DataError if a stage learned from another CLIP."""
    facts: ClipFacts = stage_of(part).clip_facts(part.config)
    _same("embeddings of width", "clip", clip.dim, name, facts.dim)
    if facts.text_width is not None:
        _same("text states of width", "clip", clip.text_width, name, facts.text_width)
    if facts.unit_norm is not None:
        _same("embeddings of unit_norm", "clip", clip.config.unit_norm, name, facts.unit_norm)
    if facts.context is not None and (context := clip.config.tokenizer.context) > facts.context:
        raise DataError(f"{name} reads {facts.context} tokens, but clip gives {context}")
    if not same_neighbour(clip.fingerprint(), facts.fingerprint):
        raise DataError(f"{name} was trained with another CLIP than this one: they do not belong together")


def _same(what: str, giver: str, given: float, taker: str, taken: float | None) -> None:
    if given != taken:
        raise DataError(f"{taker} takes {what} {taken}, but {giver} gives {given}: they do not belong together")
