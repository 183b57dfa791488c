"""Training the decoder: the hybrid loss with captions and embeddings dropped for guidance (unCLIP, section 2.1), in
pixels or in latents (DALL-E 3, appendix A).

B batch · S side of the picture · L tokens · D width of CLIP embeddings · C channels, h w places of latents
"""

from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder, LatentCodec, Task, TextEncoder
from t2i.data.augment.masks import random_masks
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import LossSecondMoment, Timesteps
from t2i.nn.ports import Given
from t2i.stages.decoder.latent import data_of, keys_of, pictures_of, states_of, unsaid
from t2i.stages.decoder.model import Decoder
from t2i.stages.decoder.sample import sample
from t2i.stages.follow import check_scale
from t2i.text.tokenizers import tokenize


class DecoderOptions(Objective):
    """How a decoder is trained."""

    clip_drop: float = Field(
        0.1,
        ge=0,
        le=1,
        description="how often the image embedding is replaced by the null embedding; 10 % in the paper",
    )
    text_drop: float = Field(
        0.5, ge=0, le=1, description="how often the caption is emptied, independently; 50 % in the paper"
    )
    class_drop: float = Field(
        0.1, ge=0, le=1, description="how often a class is the absent one, for networks that know one"
    )
    hidden: float = Field(0.15, ge=0, le=1, description="how often a network that inpaints sees nothing of the picture")
    time_shift: float = Field(1.0, gt=0, description="crowds the steps towards noise, see `timesteps.shifted`")
    cached: bool = Field(
        False,
        description="over latents: learn from those in the data, written by t2i data encode, and not from pictures",
    )
    timesteps: Timesteps = Field(
        "uniform", description="loss_second_moment draws steps by what they cost, uniform by time_shift alone"
    )
    sampling: Sampling = Field(Sampling(steps=25, guidance=2.0), description="how the sample grids are drawn")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.timesteps != "uniform" and self.time_shift != 1:
            raise ValueError(f"time_shift={self.time_shift} is for uniform timesteps, not for {self.timesteps!r}")
        return self


class DecoderTask(Task):
    """Trains a `Decoder`, with embeddings and states of a frozen `clip`, or states of a frozen `text` encoder, where it
    has ports for them; over latents, on those of a frozen `autoencoder`.

    What a batch holds already is not asked of a neighbour: `latents` (B, C, h, w), and `states` (B, L, W) of captions
    with `states_mask` (B, L). Without an autoencoder there are no grids."""

    needs: ClassVar = {"clip": Encoder, "text": TextEncoder, "autoencoder": LatentCodec}
    model: Decoder

    def __init__(
        self,
        model: Decoder,
        options: DecoderOptions = DecoderOptions(),
        *,
        clip: Encoder | None = None,
        text: TextEncoder | None = None,
        autoencoder: LatentCodec | None = None,
    ) -> None:
        super().__init__(model)
        ports = model.config.ports
        if ports.clip_image is not None and (clip is None or clip.dim != ports.clip_image.dim):
            theirs = getattr(clip, "dim", None)
            raise ValueError(f"this decoder reads embeddings of width {ports.clip_image.dim}, CLIP gives {theirs}")
        if ports.states is not None and text is not None and text.width != ports.states.width:
            raise ValueError(f"this decoder reads states of width {ports.states.width}, the encoder gives {text.width}")
        guided = {"text", "clip_image", "states"} & set(ports.names) or (
            ports.classes is not None and ports.classes.null_class
        )
        if options.sampling.guidance != 1 and not guided:
            raise ValueError(f"nothing to guide: sampling.guidance must be 1, got {options.sampling.guidance}")
        self.over_latents = model.config.diffusion.space == "latents"
        if options.cached and not self.over_latents:
            raise ValueError("cached=true is for decoders over latents, and this one draws pixels")
        self.keys = keys_of(model.config, text, None if options.cached else autoencoder)
        self.text, self.autoencoder = text, autoencoder
        self.clip, self.options, self.diffusion = clip, options, model.config.diffusion
        self.process = self.diffusion.process()
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        if options.timesteps == "loss_second_moment":
            self.memory = LossSecondMoment(self.process.num_steps)
        spelled = ports.text.tokenizer if ports.text is not None else None
        self.tokenizer = spelled.build() if spelled is not None else None
        self.reads_padding = ports.text is None or ports.text.attend_padding
        shown = ["what it is shown"] if ports.masked is not None else []
        self.groups = ("held-out picture", *shown, "drawn" if ports.names else "drawn from noise alone")
        self.takes_prompts = (
            "caption" in self.keys and ports.classes is None and self._shows and "states" not in self.keys
        )

    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Refuses latents that are not of about unit variance."""
        if self.over_latents:
            check_scale(lambda few: data_of(few, self.model.config, self.autoencoder), batches)

    def condition(self, batch: Batch, drops: Streams | None = None, *, trim: bool = False) -> Condition:
        """The decoder's condition for a batch.

        Args:
            drops: where it is drawn from what is dropped; None drops nothing.
            trim: as in `tokenize`.
        """
        ports, o, device = self.model.config.ports, self.options, self._device
        text = embedding = clip_text = states = labels = picture = None
        captions, dropped = batch["caption"] if "caption" in self.keys else [], {}
        if drops is not None:
            drawn = drops.uniform(2)  # (B, 2)
            keep = upload(drawn, device)
            dropped = {"text": keep[:, 0] < o.text_drop, "clip_image": keep[:, 1] < o.clip_drop}
            captions = [x if u >= o.text_drop else "" for x, u in zip(captions, drawn[:, 0].tolist(), strict=False)]
        if self.tokenizer is not None:
            tokens, mask = (upload(x, device) for x in tokenize(self.tokenizer, batch["caption"], trim=trim))
            text = tokens, mask
        if self.clip is not None and ports.clip_image is not None:
            with torch.no_grad():
                embedding = self.clip.encode_image(batch["image"])  # (B, D)
                clip_text = self.clip.encode_text(captions) if ports.clip_text is not None else None
        if ports.states is not None:
            states = states_of(batch, self.text)
            dropped["states"] = unsaid(captions, device)
        if ports.classes is not None:
            labels = batch["label"]
            if ports.classes.null_class and drops is not None:
                dropped["classes"] = upload(drops.uniform() < o.class_drop, device)  # (B,)
        if ports.masked is not None:
            masks = random_masks(drops or Streams(batch["seed"], "mask"), self.model.config.image_size, o.hidden)
            picture = batch["image"], upload(masks, device)
        return self.model.condition(
            Given(
                len(batch["seed"]), text=text, clip_image=embedding, clip_text=clip_text, states=states, classes=labels,
                masked=picture, dropped=dropped,
            )
        )  # fmt: skip

    @property
    def _shows(self) -> bool:
        """Whether there is something that makes pictures of latents."""
        return not self.over_latents or self.autoencoder is not None

    @property
    def _device(self) -> torch.device:
        return self.model.unet.conv_in.weight.device

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        streams, o = Streams(batch["seed"], "decoder"), self.options
        condition = self.condition(batch, streams, trim=not self.reads_padding)
        return diffusion_loss(
            self.model, self.diffusion, data_of(batch, self.model.config, self.autoencoder), condition, streams,
            o, time_shift=o.time_shift, memory=self.memory if self.model.training else None,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor | None:
        """Real pictures, and what the decoder draws from what is said of them, (2B, 3, S, S); where it inpaints, in
        between what it is shown of them, (3B, 3, S, S). Latents as pictures; None where there is no autoencoder."""
        if not self._shows:
            return None
        condition = self.condition(batch)
        shown = [condition.image[:, :3]] if condition.image is not None else []
        real = batch["image"] if "image" in batch else pictures_of(batch["latents"].float(), self.autoencoder)
        return torch.cat([real, *shown, self._draw(condition, batch)])

    @torch.no_grad()
    def draw_prompts(self, asked: Batch) -> Tensor:
        """What the decoder draws from sentences alone, (N, 3, S, S)."""
        own = {key: asked[key] for key in ("caption", "seed")}
        text = clip_text = states = None
        captions, dropped = asked["caption"], {}
        if self.tokenizer is not None:
            tokens, mask = (upload(x, self._device) for x in tokenize(self.tokenizer, captions))
            text = tokens, mask
        if self.clip is not None and self.model.config.ports.clip_text is not None:
            clip_text = self.clip.encode_text(captions)
        if self.model.config.ports.states is not None:
            states, dropped = states_of(own, self.text), {"states": unsaid(captions, self._device)}
        given = Given(len(captions), text=text, clip_text=clip_text, states=states, dropped=dropped)
        return self._draw(self.model.condition(given), own)

    def _draw(self, condition: Condition, batch: Batch) -> Tensor:
        """Pictures as grids show them, guided away from the empty sentence."""
        ports, null = self.model.config.ports, None
        num = len(batch["seed"])
        if self.clip is not None and condition.sequence is not None and ports.clip_text is not None:
            assert ports.clip_image is not None
            length = condition.sequence.shape[1] - ports.clip_image.num_tokens
            null = self.model.condition(Given(num, clip_text=self.clip.encode_text([""] * num).padded(length)))
        if ports.states is not None:
            states = states_of(batch, self.text)
            classes, every = ports.classes, torch.ones(num, dtype=torch.bool, device=self._device)
            nothing = {"states": every} | ({"classes": every} if classes is not None and classes.null_class else {})
            labels = batch["label"] if classes is not None else None
            null = self.model.condition(Given(num, states=states, classes=labels, dropped=nothing))
        streams = Streams(batch["seed"], "sample")
        x_0 = sample(self.model, condition, streams, self.options.sampling, null=null)
        return pictures_of(x_0, self.autoencoder) if self.over_latents else x_0
