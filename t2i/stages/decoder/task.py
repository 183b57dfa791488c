"""Training the decoder: the hybrid loss with captions and embeddings dropped for guidance (unCLIP section 2.1).

B batch · S side of the picture · L tokens · D width of CLIP embeddings
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.config import Config
from t2i.diffusion.losses import LossKind, Weighting, training_losses
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import shifted
from t2i.seed import Streams, upload
from t2i.stages.decoder.model import Decoder
from t2i.stages.decoder.sample import process_of, sample
from t2i.text.tokenizers import tokenize
from t2i.types import Batch, Condition, Encoder


class DecoderOptions(Config):
    """How a decoder is trained.

    `clip_drop` is how often the image embedding is replaced by the null embedding and `text_drop` how often the caption
    is emptied, independently: 10 % and 50 % in the paper. `kind`, `weighting` and `vb_weight` as in `training_losses`,
    `time_shift` as in `shifted`; `sampling` is how the sample grids are drawn.
    """

    clip_drop: float = Field(0.1, ge=0, le=1)
    text_drop: float = Field(0.5, ge=0, le=1)
    kind: LossKind = "hybrid"
    weighting: Weighting = "uniform"
    vb_weight: float = Field(1.0, ge=0)
    time_shift: float = Field(1.0, gt=0)
    sampling: Sampling = Sampling(steps=25, guidance=2.0)


class DecoderTask(nn.Module):
    """Trains a `Decoder`, with CLIP embeddings from a frozen `encoder` if it has a port for them."""

    keys: tuple[str, ...] = ("image", "caption")

    def __init__(
        self, model: Decoder, encoder: Encoder | None = None, options: DecoderOptions = DecoderOptions()
    ) -> None:
        super().__init__()
        c = model.config
        if c.clip_dim is not None and (encoder is None or encoder.dim != c.clip_dim):
            raise ValueError(
                f"this decoder reads embeddings of width {c.clip_dim}, CLIP gives {getattr(encoder, 'dim', None)}"
            )
        if c.num_classes is not None:
            self.keys = (*self.keys, "label")
            if options.sampling.guidance != 1:
                raise ValueError(f"labels are not guided: sampling.guidance must be 1, got {options.sampling.guidance}")
        self.model = model
        self.encoder = encoder
        self.options = options
        self.process = process_of(model)
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        self.parametrisation = c.parametrisation
        self.tokenizer = c.tokenizer.build() if c.tokenizer is not None else None
        self.reads_padding = c.text is None or c.text.attend_padding

    def condition(
        self, batch: Batch, text_keep: Tensor | None = None, clip_keep: Tensor | None = None, *, trim: bool = False
    ) -> Condition:
        """The decoder's condition for a batch of captioned pictures; `trim` as in `tokenize`."""
        device = batch["image"].device
        tokens = mask = embedding = None
        if self.tokenizer is not None:
            tokens, mask = (upload(x, device) for x in tokenize(self.tokenizer, batch["caption"], trim=trim))  # (B, L)
        if self.encoder is not None and self.model.config.clip_dim is not None:
            with torch.no_grad():
                embedding = self.encoder.encode_image(batch["image"])  # (B, D)
        labels = batch.get("label") if self.model.config.num_classes is not None else None
        return self.model.condition(tokens, mask, embedding, labels, text_keep=text_keep, clip_keep=clip_keep)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0 = batch["image"]  # (B, 3, S, S)
        device = x_0.device
        streams = Streams(batch["seed"], "decoder")
        keep = upload(streams.uniform(2), device)  # (B, 2)
        text_keep, clip_keep = keep[:, 0] >= self.options.text_drop, keep[:, 1] >= self.options.clip_drop
        condition = self.condition(batch, text_keep, clip_keep, trim=not self.reads_padding)
        step = streams.integers(self.process.num_steps)  # (B,)
        step = upload(shifted(step, self.process.num_steps, self.options.time_shift), device)
        noise = upload(streams.normal(*x_0.shape[1:]), device)  # (B, 3, S, S)
        x_t = self.process.q_sample(x_0, step, noise)
        raw = self.model(x_t, self.process.time(step, x_t), condition)
        o = self.options
        return training_losses(
            self.process, self.parametrisation, raw, x_0, x_t, noise, step, o.kind, o.weighting, o.vb_weight
        )

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Real pictures above what the decoder draws from their captions and embeddings, (2B, 3, S, S)."""
        drawn = sample(self.model, self.condition(batch), Streams(batch["seed"], "sample"), self.options.sampling)
        return torch.cat([batch["image"], drawn])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Nothing beyond the loss; pictures are judged by `t2i eval`."""
        return {}
