"""Training the decoder: the hybrid loss with captions and embeddings dropped for guidance (unCLIP, section 2.1).

B batch · S side of the picture · L tokens · D width of CLIP embeddings
"""

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder, Task
from t2i.data.augment.masks import random_masks
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import LossSecondMoment, Timesteps
from t2i.nn.ports import Given
from t2i.stages.decoder.model import Decoder
from t2i.stages.decoder.sample import sample
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
    """Trains a `Decoder`, with embeddings and states of a frozen `clip` if it has ports for them."""

    needs: ClassVar = {"clip": Encoder}
    model: Decoder

    def __init__(
        self, model: Decoder, options: DecoderOptions = DecoderOptions(), *, clip: Encoder | None = None
    ) -> None:
        super().__init__(model)
        ports = model.config.ports
        if ports.clip_image is not None and (clip is None or clip.dim != ports.clip_image.dim):
            theirs = getattr(clip, "dim", None)
            raise ValueError(f"this decoder reads embeddings of width {ports.clip_image.dim}, CLIP gives {theirs}")
        guided = {"text", "clip_image", "states"} & set(ports.names) or (
            ports.classes is not None and ports.classes.null_class
        )
        if options.sampling.guidance != 1 and not guided:
            raise ValueError(f"nothing to guide: sampling.guidance must be 1, got {options.sampling.guidance}")
        reads = {"caption": ports.text is not None or ports.clip_text is not None, "label": ports.classes is not None}
        self.keys = ("image", *(key for key, there in reads.items() if there))
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
        self.takes_prompts = "caption" in self.keys and ports.classes is None

    def condition(self, batch: Batch, drops: Streams | None = None, *, trim: bool = False) -> Condition:
        """The decoder's condition for a batch.

        Args:
            drops: where it is drawn from what is dropped; None drops nothing.
            trim: as in `tokenize`.
        """
        ports, image, o = self.model.config.ports, batch["image"], self.options
        text = embedding = clip_text = labels = picture = None
        captions, dropped = batch["caption"] if "caption" in self.keys else [], {}
        if drops is not None:
            drawn = drops.uniform(2)  # (B, 2)
            keep = upload(drawn, image.device)
            dropped = {"text": keep[:, 0] < o.text_drop, "clip_image": keep[:, 1] < o.clip_drop}
            captions = [x if u >= o.text_drop else "" for x, u in zip(captions, drawn[:, 0].tolist(), strict=False)]
        if self.tokenizer is not None:
            tokens, mask = (upload(x, image.device) for x in tokenize(self.tokenizer, batch["caption"], trim=trim))
            text = tokens, mask
        if self.clip is not None and ports.clip_image is not None:
            with torch.no_grad():
                embedding = self.clip.encode_image(image)  # (B, D)
                clip_text = self.clip.encode_text(captions) if ports.clip_text is not None else None
        if ports.classes is not None:
            labels = batch["label"]
            if ports.classes.null_class and drops is not None:
                dropped["classes"] = upload(drops.uniform() < o.class_drop, image.device)  # (B,)
        if ports.masked is not None:
            masks = random_masks(drops or Streams(batch["seed"], "mask"), self.model.config.image_size, o.hidden)
            picture = image, upload(masks, image.device)
        return self.model.condition(
            Given(
                len(image), text=text, clip_image=embedding, clip_text=clip_text, classes=labels, masked=picture,
                dropped=dropped,
            )
        )  # fmt: skip

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        streams, o = Streams(batch["seed"], "decoder"), self.options
        condition = self.condition(batch, streams, trim=not self.reads_padding)
        return diffusion_loss(
            self.model, self.diffusion, batch["image"], condition, streams,
            o, time_shift=o.time_shift, memory=self.memory if self.model.training else None,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Real pictures, and what the decoder draws from what is said of them, (2B, 3, S, S); where it inpaints, in
        between what it is shown of them, (3B, 3, S, S)."""
        condition = self.condition(batch)
        shown = [condition.image[:, :3]] if condition.image is not None else []
        return torch.cat([batch["image"], *shown, self._draw(condition, batch)])

    @torch.no_grad()
    def draw_prompts(self, asked: Batch) -> Tensor:
        """What the decoder draws from sentences alone, (N, 3, S, S)."""
        captions, text, states = asked["caption"], None, None
        if self.tokenizer is not None:
            tokens, mask = (upload(x, asked["image"].device) for x in tokenize(self.tokenizer, captions))
            text = tokens, mask
        if self.clip is not None and self.model.config.ports.clip_text is not None:
            states = self.clip.encode_text(captions)
        return self._draw(self.model.condition(Given(len(captions), text=text, clip_text=states)), asked)

    def _draw(self, condition: Condition, batch: Batch) -> Tensor:
        """Pictures as grids show them, guided away from the empty sentence."""
        ports, null = self.model.config.ports, None
        if self.clip is not None and condition.sequence is not None and ports.clip_text is not None:
            assert ports.clip_image is not None
            num = len(batch["caption"])
            length = condition.sequence.shape[1] - ports.clip_image.num_tokens
            null = self.model.condition(Given(num, clip_text=self.clip.encode_text([""] * num).padded(length)))
        return sample(self.model, condition, Streams(batch["seed"], "sample"), self.options.sampling, null=null)
