"""Training the decoder: the hybrid loss with captions and embeddings dropped for guidance (unCLIP section 2.1).

B batch · S side of the picture · L tokens · D width of CLIP embeddings
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder
from t2i.data.augment.masks import random_masks
from t2i.diffusion.losses import LossKind, Weighting, training_losses
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import LossSecondMoment, Timesteps, draw_steps
from t2i.stages.decoder.model import Decoder
from t2i.stages.decoder.sample import process_of, sample
from t2i.text.tokenizers import tokenize


class DecoderOptions(Config):
    """How a decoder is trained.

    `clip_drop` is how often the image embedding is replaced by the null embedding and `text_drop` how often the caption
    is emptied, independently: 10 % and 50 % in the paper; `class_drop` is how often a class is the absent one, for
    networks that know one, and `hidden` how often those that inpaint see nothing of the picture. `kind`, `weighting`
    and `vb_weight` as in `training_losses`, `time_shift` as in `shifted`; `timesteps` "loss_second_moment" draws steps
    by what they cost (`LossSecondMoment`), "uniform" by `time_shift` alone; `sampling` is how the sample grids are
    drawn.
    """

    clip_drop: float = Field(0.1, ge=0, le=1)
    text_drop: float = Field(0.5, ge=0, le=1)
    class_drop: float = Field(0.1, ge=0, le=1)
    hidden: float = Field(0.15, ge=0, le=1)
    kind: LossKind = "hybrid"
    weighting: Weighting = "uniform"
    vb_weight: float = Field(1.0, ge=0)
    time_shift: float = Field(1.0, gt=0)
    timesteps: Timesteps = "uniform"
    sampling: Sampling = Sampling(steps=25, guidance=2.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.timesteps != "uniform" and self.time_shift != 1:
            raise ValueError(f"time_shift={self.time_shift} is for uniform timesteps, not for {self.timesteps!r}")
        return self


class DecoderTask(nn.Module):
    """Trains a `Decoder`, with CLIP embeddings from a frozen `encoder` if it has a port for them."""

    def __init__(
        self, model: Decoder, encoder: Encoder | None = None, options: DecoderOptions = DecoderOptions()
    ) -> None:
        super().__init__()
        c = model.config
        if c.clip_dim is not None and (encoder is None or encoder.dim != c.clip_dim):
            raise ValueError(
                f"this decoder reads embeddings of width {c.clip_dim}, CLIP gives {getattr(encoder, 'dim', None)}"
            )
        if options.sampling.guidance != 1 and c.text is None and c.clip_dim is None and not c.null_class:
            raise ValueError(f"nothing to guide: sampling.guidance must be 1, got {options.sampling.guidance}")
        reads = c.text is not None or c.clip_text_width is not None
        ports = {"caption": reads, "label": c.num_classes is not None}
        self.keys: tuple[str, ...] = ("image", *(key for key, there in ports.items() if there))
        self.model = model
        self.encoder = encoder
        self.options = options
        self.process = process_of(model)
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        self.memory = LossSecondMoment(self.process.num_steps) if options.timesteps == "loss_second_moment" else None
        self.parametrisation = c.parametrisation
        self.tokenizer = c.tokenizer.build() if c.tokenizer is not None else None
        self.reads_padding = c.text is None or c.text.attend_padding

    def condition(self, batch: Batch, drops: Streams | None = None, *, trim: bool = False) -> Condition:
        """The decoder's condition for a batch.

        Args:
            drops: where it is drawn from what is dropped; None drops nothing.
            trim: as in `tokenize`.
        """
        c, image, o = self.model.config, batch["image"], self.options
        tokens = mask = embedding = clip_text = labels = known = text_keep = clip_keep = None
        captions = batch["caption"] if "caption" in self.keys else []
        if drops is not None:
            drawn = drops.uniform(2)  # (B, 2)
            keep = upload(drawn, image.device)
            text_keep, clip_keep = keep[:, 0] >= o.text_drop, keep[:, 1] >= o.clip_drop
            captions = [x if u >= o.text_drop else "" for x, u in zip(captions, drawn[:, 0].tolist(), strict=False)]
        if self.tokenizer is not None:
            tokens, mask = (upload(x, image.device) for x in tokenize(self.tokenizer, batch["caption"], trim=trim))
        if self.encoder is not None and c.clip_dim is not None:
            with torch.no_grad():
                embedding = self.encoder.encode_image(image)  # (B, D)
                clip_text = self.encoder.encode_text(captions) if c.clip_text_width is not None else None
        if c.num_classes is not None:
            labels = batch["label"]
            if c.null_class and drops is not None:
                absent = upload(drops.uniform() < o.class_drop, image.device)  # (B,)
                labels = torch.where(absent, c.num_classes, labels)
        if c.inpaint:
            masks = random_masks(drops or Streams(batch["seed"], "mask"), c.image_size, o.hidden)
            known = image, upload(masks, image.device)
        return self.model.condition(
            tokens, mask, embedding, labels, known, clip_text=clip_text, text_keep=text_keep, clip_keep=clip_keep
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0 = batch["image"]  # (B, 3, S, S)
        device = x_0.device
        streams = Streams(batch["seed"], "decoder")
        condition = self.condition(batch, streams, trim=not self.reads_padding)
        memory = self.memory if self.model.training else None
        step = draw_steps(streams, self.process.num_steps, device, self.options.time_shift, memory)  # (B,)
        noise = upload(streams.normal(*x_0.shape[1:]), device)  # (B, 3, S, S)
        x_t = self.process.q_sample(x_0, step, noise)
        raw = self.model(x_t, self.process.time(step, x_t), condition)
        o = self.options
        losses = training_losses(
            self.process, self.parametrisation, raw, x_0, x_t, noise, step, o.kind, o.weighting, o.vb_weight
        )
        return losses if memory is None else losses | {"loss": memory.weigh(step, losses["loss"])}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Real pictures above what the decoder draws from what is said of them, (2B, 3, S, S); where it inpaints, in
        between what it is shown of them, (3B, 3, S, S)."""
        condition, c, null = self.condition(batch), self.model.config, None
        if self.encoder is not None and condition.sequence is not None and c.clip_text_width is not None:
            empty = self.encoder.encode_text([""] * len(batch["image"]))
            null = self.model.condition(clip_text=empty.padded(condition.sequence.shape[1] - c.num_clip_tokens))
        drawn = sample(self.model, condition, Streams(batch["seed"], "sample"), self.options.sampling, null=null)
        shown = [condition.image[:, :3]] if condition.image is not None else []
        return torch.cat([batch["image"], *shown, drawn])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Nothing beyond the loss; pictures are judged by `t2i eval`."""
        return {}
