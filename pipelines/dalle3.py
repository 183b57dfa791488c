"""DALL-E 3 (Betker et al. 2023, "Improving Image Generation with Better Captions"), as far as it is published.

    prompt   ──rewriter────────────▶ a descriptive caption, as those that the generator learned from
    caption  ──T5──────────────────▶ what it says, token by token
    states   ──latent diffusion────▶ z, a picture at an eighth of its sides                P(z | caption)
    z        ──consistency decoder─▶ pixels, in two steps                                  P(x | z)
          or ──autoencoder─────────▶ pixels, in one

The paper's appendices name the parts: the autoencoder of Rombach et al. 2022, a U-Net that attends to T5's states, and
a decoder distilled by consistency (Song et al. 2023). Aspect ratios, sizes and guidance are not published.

Legend: N pictures · C channels of latents · L tokens · W width of T5's states.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import DataError, UsageError
from t2i.core.types import TextFeatures, Tokenizer
from t2i.io.images import to_pil
from t2i.pipeline.arguments import Draw, Prompts, prompt_rows
from t2i.pipeline.base import Pipeline
from t2i.pipeline.output import Output
from t2i.pipeline.placement import on_device
from t2i.pipeline.request import Request
from t2i.pipeline.slots import Slot
from t2i.pipeline.upsampled import upsampled
from t2i.stages.follow import same_neighbour
from t2i.stages.registry import stage_of


class DALLE3(Pipeline):
    """`pipe("a red cube")`. Stages that draw: decoder (latents), then consistency, or autoencoder where there is none.

    `stop_after="autoencoder"` takes the autoencoder's own pixels.
    """

    kind, subject, number = "dalle3", "prompt", "num_images_per_prompt"
    slots = (
        Slot("text", ("t5",), role="reads"),
        Slot("rewriter", ("rewriter",), role="reads", optional=True),
        Slot("decoder", ("decoder",), steps=20, sampler="ddim", guided=True, guidance=3.0),
        Slot("autoencoder", ("autoencoder",)),
        Slot("consistency", ("consistency_decoder",), optional=True),
    )
    sampled = ("decoder", "autoencoder", "consistency")
    judged = None

    def __call__(
        self,
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        upsample_prompt: str | None = None,
        **draw: Unpack[Draw],
    ) -> Output:
        """Draw pictures; arguments and errors as in `DALLE2`, guidance acts in the decoder.

        `upsample_prompt="lm"` lets the rewriter write a prompt out, as the captions that the generator learned from.
        """
        prompt, asked = upsampled(self, prompt, upsample_prompt)
        texts = prompt_rows(prompt, negative_prompt, num_images_per_prompt, self.readers, asked)
        return self.run(self.request(draw, texts=texts, sampled=self._sampled(draw)))

    def run(self, r: Request) -> Output:
        """The story itself."""
        *_, last = r.sampling
        with r:
            z = r.draw("decoder")  # (N, C, 32, 32)
            x = r.draw(last, latents=z) if last != "decoder" else self._pixels(z)  # (N, 3, 256, 256)
        return r.output(x)

    # -- what surrounds the story --------------------------------------------------------------------------------------

    def _sampled(self, draw: Draw) -> tuple[str, ...]:
        """The latents, and the one of two decoders that makes pixels of them."""
        last = draw.get("stop_after")
        if last not in (None, *self.sampled):
            return self.sampled  # the plan says which there are
        plain = last == "autoencoder" or "consistency" not in self.parts
        return "decoder", "autoencoder" if plain else "consistency"

    @property
    def readers(self) -> list[Tokenizer]:
        """What reads prompts."""
        return stage_of(self.parts["text"]).readers(self.parts["text"])

    def readers_of(self, scales: Mapping[str, float]) -> list[Tokenizer]:
        """The same, whatever guides."""
        return self.readers

    def encode_texts(self, *texts: Sequence[str]) -> list[TextFeatures]:
        """What T5 says of lists of sentences."""
        with on_device(self, "text"):
            return [self.parts["text"].encode_text(captions) for captions in texts]

    def preview(self, stage: str, x_0: Tensor) -> list[Image]:
        """Latents through the autoencoder, pixels as they are."""
        return to_pil(self._pixels(x_0) if stage == "decoder" else x_0)

    @torch.no_grad()
    def _pixels(self, z: Tensor) -> Tensor:
        """Latents (N, C, h, w) through the autoencoder, one by one: N are as many as are asked for."""
        with on_device(self, "autoencoder"):
            decode = self.parts["autoencoder"].decode_latents
            return torch.cat([decode(one) for one in z.to(self.device).split(1)])

    def check_fit(self) -> None:
        check_fit(self.parts)


def check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if a part was trained beside another one than its neighbour in this chain, UsageError where nothing
    turns latents into pixels."""
    if "autoencoder" not in parts:
        raise UsageError("the chain text → decoder lacks autoencoder")
    text, codec, decoder = parts["text"], parts["autoencoder"], parts["decoder"].config
    if decoder.diffusion.space != "latents" or decoder.latents is None:
        raise DataError("decoder draws pixels; this chain needs one that was trained on latents of an autoencoder")
    if decoder.ports.states is None or set(decoder.ports.names) - {"states"}:
        raise DataError("decoder must read the states of T5 and nothing else")
    if decoder.ports.states.width != text.width:
        raise DataError(f"decoder reads states of width {decoder.ports.states.width}, text gives {text.width}")
    if 0 < decoder.ports.states.positions < text.tokenizer.context:
        read, written = decoder.ports.states.positions, text.tokenizer.context
        raise DataError(f"decoder reads {read} tokens (ports.states.positions), text gives {written}")
    if not same_neighbour(text.fingerprint(), decoder.ports.states.fingerprint):
        raise DataError("decoder was trained with another T5 than text: they do not belong together")
    for name in ("decoder", "consistency"):
        if name in parts:
            latents = parts[name].config.latents
            ours, theirs = (codec.channels, codec.factor), (latents.channels, latents.factor)
            if ours != theirs:
                raise DataError(f"{name} takes latents of (channels, factor) {theirs}, autoencoder gives {ours}")
            scaling = getattr(latents, "scaling", None) if not latents.fingerprint else None
            if scaling is not None and not _scaled_by(codec, scaling):
                raise DataError(f"{name} is for an autoencoder with latents times {scaling}, and this one has others")
            if not same_neighbour(codec.fingerprint(), latents.fingerprint):
                raise DataError(f"{name} was trained with another autoencoder than this one: they do not fit")


def _scaled_by(codec: Any, scaling: float) -> bool:
    """Whether an autoencoder's latents are what it says times a factor, as Stable Diffusion's."""
    scale, shift = torch.as_tensor(codec.scale).float(), torch.as_tensor(codec.shift).float()
    return bool(shift.abs().max() < 1e-3 and (scale / scaling - 1).abs().max() < 1e-2)
