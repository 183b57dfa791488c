"""Training such a prior: mean squared error to the clean embedding (Ramesh et al. 2022, equation 2).

B batch · D width of CLIP embeddings
"""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior
from t2i.stages.dalle2_pytorch.prior.sample import sample


class LaionPriorOptions(Config):
    """`drop` is how often nothing is said, for guidance, if the prior knows that: the sentence is hidden, or it and the
    noised embedding are replaced by the learned ones."""

    drop: float = Field(0.1, ge=0, le=1)


class LaionPriorTask(nn.Module):
    """Trains a `LaionPrior` against a frozen `encoder`."""

    keys = ("image", "caption")

    def __init__(
        self, model: LaionPrior, encoder: Encoder | None, options: LaionPriorOptions = LaionPriorOptions()
    ) -> None:
        super().__init__()
        widths = {getattr(encoder, "dim", None), getattr(encoder, "text_width", model.config.clip_dim)}
        if encoder is None or widths != {model.config.clip_dim}:
            raise ValueError(f"the prior is of width {model.config.clip_dim}, CLIP of {getattr(encoder, 'dim', None)}")
        self.model, self.encoder, self.drop = model, encoder, options.drop
        self.process = Process.from_schedule(model.config.schedule, model.config.num_steps)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample squared error and the cosine between answer and truth, each (B,)."""
        device, streams = batch["image"].device, Streams(batch["seed"], "laion_prior")
        with torch.no_grad():
            text, x_0 = self.encoder.encode_text(batch["caption"]), self.encoder.encode_image(batch["image"])
        x_0 = x_0 * self.model.scale
        step = upload(streams.integers(self.process.num_steps), device)
        x_t = self.process.q_sample(x_0, step, upload(streams.normal(x_0.shape[1]), device))
        condition = self.model.condition(text)
        gone = upload(streams.uniform() < self.drop, device)[:, None]  # (B, 1)
        if condition.mask is not None:
            condition = replace(condition, mask=condition.mask & ~gone)
        elif self.model.config.unsaid == "nulls":
            null = self.model.null_condition(len(x_0))
            assert null.sequence is not None
            assert null.vector is not None
            assert condition.sequence is not None
            sequence = torch.where(gone[..., None], null.sequence, condition.sequence)
            condition = Condition(sequence=sequence, vector=torch.where(gone, null.vector, x_t))
        answer = self.model(x_t, step, condition)
        return {
            "loss": (answer - x_0).square().mean(dim=1),
            "cosine": nn.functional.cosine_similarity(answer, x_0).detach(),
        }

    def sample(self, batch: Batch) -> None:
        """Embeddings are no pictures."""

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Cosine of sampled embeddings with the picture's own, and with the sentence's."""
        text = self.encoder.encode_text(batch["caption"])
        sampling = Sampling(steps=min(25, self.process.num_steps - 1))
        z_i = sample(self.model, text, Streams(batch["seed"], "sample"), sampling, num_candidates=1)
        truths = {"cosine_image": self.encoder.encode_image(batch["image"]), "cosine_text": text.pooled}
        return {k: float(nn.functional.cosine_similarity(z_i, z).mean()) for k, z in truths.items()}
