"""Training the autoregressive prior: cross entropy of each code given those before (Ramesh et al. 2022, section 2.2).

B batch · D width of CLIP embeddings · k components · K buckets
"""

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Encoder, Task, TextFeatures
from t2i.stages.ar_prior.model import ArPrior
from t2i.stages.ar_prior.sample import sample


class ArPriorOptions(Config):
    """How an autoregressive prior is trained.

    The code of the dot product stays that with the caption's own embedding, also where the caption is dropped, so that
    it says the same on both sides of guidance.
    """

    text_drop: float = Field(
        0.1, ge=0, le=1, description="how often the caption, words and embedding together, is replaced by the empty one"
    )
    measured_on: int = Field(
        512,
        ge=1,
        description="pictures, at least 64, that tell components and buckets before the first step: many more "
        "than embeddings are wide",
    )


class ArPriorTask(Task):
    """Trains an `ArPrior` against a frozen `clip`."""

    needs: ClassVar = {"clip": Encoder}
    keys = ("image", "caption")
    groups = ("held-out picture", "the one nearest to what its caption becomes")
    takes_prompts = True
    model: ArPrior

    def __init__(
        self, model: ArPrior, options: ArPriorOptions = ArPriorOptions(), *, clip: Encoder | None = None
    ) -> None:
        super().__init__(model)
        if clip is None or clip.dim != model.config.clip_dim:
            raise ValueError(f"the prior is of width {model.config.clip_dim}, CLIP of {getattr(clip, 'dim', None)}")
        self.clip, self.options = clip, options

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Measure PCA and buckets before the first step, if they are unknown or `anew`."""
        if anew or not self.model.calibrated:
            first = islice(batches, max(1, self.options.measured_on // 64))
            pairs = [(self.clip.encode_image(b["image"]), self.clip.encode_text(b["caption"]).pooled) for b in first]
            self.model.calibrate(*(torch.cat(z) for z in zip(*pairs, strict=True)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Nats per code, mean over all codes, and of the dot product's alone, each (B,)."""
        dropped = Streams(batch["seed"], "ar_prior").uniform() < self.options.text_drop  # (B,)
        rows = upload(torch.where(dropped, len(dropped), torch.arange(len(dropped))), batch["image"].device)
        with torch.no_grad():
            z_i = self.clip.encode_image(batch["image"])  # (B, D)
            every = self.clip.encode_text([*batch["caption"], ""])  # B + 1 rows
            codes = self.model.quantise(z_i, every.pooled[:-1])  # (B, 1 + k)
            text = TextFeatures(*(x[rows] for x in every))
        logits = self.model(codes[:, :-1], self.model.condition(text))  # (B, 1 + k, K)
        nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
        nats = nats + 0 * self.model.low.sum()  # codes are whole numbers and cannot be NaN; without buckets this is
        return {"loss": nats.mean(dim=1), "dot": nats[:, 0]}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Each picture, and the one whose embedding is nearest to what the prior makes of its caption."""
        return torch.cat([batch["image"], self.draw_prompts(batch)])

    @torch.no_grad()
    def draw_prompts(self, asked: Batch) -> Tensor:
        """The held-out pictures whose embeddings are nearest to what the prior makes of sentences."""
        z_i = self._draw(asked, self.clip.encode_text(asked["caption"]))
        nearest = (z_i @ self.clip.encode_image(asked["image"]).T).argmax(dim=1)
        return torch.as_tensor(asked["image"][nearest])

    def _draw(self, batch: Batch, text: TextFeatures) -> Tensor:
        return sample(self.model, text, Streams(batch["seed"], "sample"))

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Cosine of sampled embeddings with the picture's own and with the sentence's (both paths of the prior), and of
        the picture's own with what its codes keep of it."""
        text = self.clip.encode_text(batch["caption"])
        z_i = self._draw(batch, text)
        truth = self.clip.encode_image(batch["image"])
        kept = self.model.restore(self.model.quantise(truth, text.pooled)[:, 1:])
        return {
            "cosine_image": float(F.cosine_similarity(z_i, truth).mean()),
            "cosine_text": float(F.cosine_similarity(z_i, text.pooled).mean()),
            "cosine_codes": float(F.cosine_similarity(kept, truth).mean()),
        }
