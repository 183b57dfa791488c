"""Training such a decoder, with embeddings and sentences dropped for guidance (unCLIP section 2.1).

B batch · S side of the picture
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder
from t2i.diffusion.losses import LossKind, training_losses
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder
from t2i.stages.dalle2_pytorch.decoder.sample import process_of, sample


class LaionDecoderOptions(Config):
    """`drop` and `text_drop` are how often embedding and sentence are replaced by the learned ones, each by itself;
    `kind` as in `training_losses`; `sampling` is how the sample grids are drawn."""

    drop: float = Field(0.1, ge=0, le=1)
    text_drop: float = Field(0.5, ge=0, le=1)
    kind: LossKind = "hybrid"
    sampling: Sampling = Sampling(steps=25, guidance=2.0)


class LaionDecoderTask(nn.Module):
    """Trains a `LaionDecoder` on the embeddings of a frozen `encoder`."""

    def __init__(
        self, model: LaionDecoder, encoder: Encoder | None, options: LaionDecoderOptions = LaionDecoderOptions()
    ) -> None:
        super().__init__()
        c = model.config
        if encoder is None or encoder.dim != c.clip_dim:
            raise ValueError(
                f"this decoder reads embeddings of width {c.clip_dim}, CLIP gives {getattr(encoder, 'dim', None)}"
            )
        self.keys: tuple[str, ...] = ("image",) if c.clip_text_width is None else ("image", "caption")
        self.model, self.encoder, self.options = model, encoder, options
        self.process = process_of(model)

    def condition(self, batch: Batch) -> Condition:
        """The decoder's condition for a batch, nothing of it dropped."""
        with torch.no_grad():
            z_i = self.encoder.encode_image(batch["image"])
            text = self.encoder.encode_text(batch["caption"]) if "caption" in self.keys else None
        return self.model.condition(z_i, text)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0, streams = batch["image"], Streams(batch["seed"], "laion_decoder")
        gone, wordless = (
            upload(streams.uniform() < share, x_0.device)[:, None]  # (B, 1)
            for share in (self.options.drop, self.options.text_drop)
        )
        said, null = self.condition(batch), self.model.null_condition(len(x_0))
        assert said.vector is not None and said.sequence is not None  # noqa: PT018
        assert null.vector is not None and null.sequence is not None  # noqa: PT018
        is_text = torch.arange(said.sequence.shape[1], device=x_0.device) >= self.model.config.num_clip_tokens  # (L,)
        dropped = torch.where(is_text, wordless, gone)  # (B, L)
        condition = Condition(
            vector=torch.where(gone, null.vector, said.vector),
            sequence=torch.where(dropped[..., None], null.sequence, said.sequence),
        )
        step = upload(streams.integers(self.process.num_steps), x_0.device)
        noise = upload(streams.normal(*x_0.shape[1:]), x_0.device)
        x_t = self.process.q_sample(x_0, step, noise)
        raw = self.model(x_t, step, condition)
        c = self.model.config
        return training_losses(self.process, c.parametrisation, raw, x_0, x_t, noise, step, self.options.kind)

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Real pictures above what the decoder draws from what is said of them, (2B, 3, S, S)."""
        condition, null = self.condition(batch), self.model.null_condition(len(batch["image"]))
        drawn = sample(self.model, condition, null, Streams(batch["seed"], "sample"), self.options.sampling)
        return torch.cat([batch["image"], drawn])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Nothing beyond the loss; pictures are judged by `t2i eval`."""
        return {}
