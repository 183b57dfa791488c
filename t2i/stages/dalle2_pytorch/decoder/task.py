"""Training such a decoder, with embeddings and sentences dropped for guidance (unCLIP, section 2.1).

B batch · S side of the picture
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder, Task
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder
from t2i.stages.dalle2_pytorch.decoder.sample import sample


class LaionDecoderOptions(Objective):
    """How such a decoder is trained."""

    drop: float = Field(0.1, ge=0, le=1, description="how often the embedding is replaced by the learned one")
    text_drop: float = Field(0.5, ge=0, le=1, description="how often the sentence is, by itself")
    sampling: Sampling = Field(Sampling(steps=25, guidance=2.0), description="how the sample grids are drawn")


class LaionDecoderTask(Task):
    """Trains a `LaionDecoder` on the embeddings of a frozen `clip`."""

    needs: ClassVar = {"clip": Encoder}
    groups = ("held-out picture", "drawn")
    model: LaionDecoder

    def __init__(
        self, model: LaionDecoder, options: LaionDecoderOptions = LaionDecoderOptions(), *, clip: Encoder | None = None
    ) -> None:
        super().__init__(model)
        c = model.config
        if clip is None or clip.dim != c.clip_dim:
            raise ValueError(
                f"this decoder reads embeddings of width {c.clip_dim}, CLIP gives {getattr(clip, 'dim', None)}"
            )
        self.keys = ("image",) if c.clip_text_width is None else ("image", "caption")
        self.clip, self.options, self.process = clip, options, c.diffusion.process()

    def condition(self, batch: Batch) -> Condition:
        """The decoder's condition for a batch, nothing of it dropped."""
        with torch.no_grad():
            z_i = self.clip.encode_image(batch["image"])
            text = self.clip.encode_text(batch["caption"]) if "caption" in self.keys else None
        return self.model.condition(z_i, text)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0, streams = batch["image"], Streams(batch["seed"], "laion_decoder")
        dropped, text_dropped = (
            upload(streams.uniform() < share, x_0.device)[:, None]  # (B, 1)
            for share in (self.options.drop, self.options.text_drop)
        )
        cond, null = self.condition(batch), self.model.null_condition(len(x_0))
        assert cond.vector is not None and cond.sequence is not None  # noqa: PT018
        assert null.vector is not None and null.sequence is not None  # noqa: PT018
        is_text = torch.arange(cond.sequence.shape[1], device=x_0.device) >= self.model.config.num_clip_tokens  # (L,)
        rows = torch.where(is_text, text_dropped, dropped)  # (B, L)
        condition = Condition(
            vector=torch.where(dropped, null.vector, cond.vector),
            sequence=torch.where(rows[..., None], null.sequence, cond.sequence),
        )
        return diffusion_loss(self.model, self.model.config.diffusion, x_0, condition, streams, self.options)

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Real pictures, and what the decoder draws from what is said of them, (2B, 3, S, S)."""
        condition, null = self.condition(batch), self.model.null_condition(len(batch["image"]))
        drawn = sample(self.model, condition, null, Streams(batch["seed"], "sample"), self.options.sampling)
        return torch.cat([batch["image"], drawn])
