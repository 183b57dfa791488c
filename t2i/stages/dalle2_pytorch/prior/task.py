"""Training such a prior: mean squared error to the clean embedding (Ramesh et al. 2022, equation 2).

B batch · D width of CLIP embeddings
"""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder, Prediction, Task
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior
from t2i.stages.dalle2_pytorch.prior.sample import sample


class LaionPriorOptions(Config):
    """How such a prior is trained."""

    drop: float = Field(
        0.1,
        ge=0,
        le=1,
        description="how often the sentence is hidden, or replaced, with the noised embedding, by learned ones, "
        "for guidance, if the prior knows that",
    )


class LaionPriorTask(Task):
    """Trains a `LaionPrior` against a frozen `clip`."""

    needs: ClassVar = {"clip": Encoder}
    keys = ("image", "caption")
    model: LaionPrior

    def __init__(
        self, model: LaionPrior, options: LaionPriorOptions = LaionPriorOptions(), *, clip: Encoder | None = None
    ) -> None:
        super().__init__(model)
        width = model.config.clip_dim
        if clip is None or {clip.dim, getattr(clip, "text_width", width)} != {width}:
            raise ValueError(f"the prior is of width {width}, CLIP of {getattr(clip, 'dim', None)}")
        self.clip, self.drop = clip, options.drop
        self.process = model.config.diffusion.process()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample squared error and the cosine between answer and truth, each (B,)."""
        streams = Streams(batch["seed"], "laion_prior")
        with torch.no_grad():
            text, z_i = self.clip.encode_text(batch["caption"]), self.clip.encode_image(batch["image"])
        x_0 = z_i * self.model.scale

        def condition(x_t: Tensor) -> Condition:
            dropped = upload(streams.uniform() < self.drop, x_t.device)[:, None]  # (B, 1)
            return self._dropped(self.model.condition(text), x_t, dropped)

        def cosine(p: Prediction) -> dict[str, Tensor]:
            return {"cosine": nn.functional.cosine_similarity(p.x_0, x_0)}

        losses = diffusion_loss(
            self.model, self.model.config.diffusion, x_0, condition, streams, Objective(kind="simple"), also=cosine
        )
        return {name: losses[name] for name in ("loss", "cosine")}

    def _dropped(self, condition: Condition, x_t: Tensor, dropped: Tensor) -> Condition:
        """The condition with some rows (B, 1) replaced by what stands where nothing is said."""
        if condition.mask is not None:
            return replace(condition, mask=condition.mask & ~dropped)
        if self.model.config.null_mode != "nulls":
            return condition
        null = self.model.null_condition(len(x_t))
        assert null.sequence is not None and null.vector is not None and condition.sequence is not None  # noqa: PT018
        sequence = torch.where(dropped[..., None], null.sequence, condition.sequence)
        return Condition(sequence=sequence, vector=torch.where(dropped, null.vector, x_t))

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Cosine of sampled embeddings with the picture's own, and with the sentence's."""
        text = self.clip.encode_text(batch["caption"])
        sampling = Sampling(steps=min(25, self.process.num_steps - 1))
        z_i = sample(self.model, text, Streams(batch["seed"], "sample"), sampling, num_candidates=1)
        truths = {"cosine_image": self.clip.encode_image(batch["image"]), "cosine_text": text.pooled}
        return {k: float(nn.functional.cosine_similarity(z_i, z).mean()) for k, z in truths.items()}
