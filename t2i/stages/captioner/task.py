"""Training a captioner: by contrast and word by word, in one pass (Yu et al. 2022, equation 4).

B batch · L tokens
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import mix, upload
from t2i.core.types import Batch, Task
from t2i.nn.contrastive import contrastive_loss
from t2i.stages.captioner.model import Captioner


class CaptionerOptions(Config):
    """How a captioner is trained; 1 : 2 is the paper's, 0 : 1 fine-tunes on captions alone."""

    contrastive: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    captioning: float = Field(2.0, ge=0, description="weight of the loss of the captions' words")
    max_scale: float = Field(100.0, gt=0, description="bound of the learned inverse temperature")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.contrastive and not self.captioning:
            raise ValueError("contrastive=0 and captioning=0 leave nothing to learn")
        return self


class CaptionerTask(Task):
    """Trains a `Captioner`. Every picture is compared with the captions of all processes, of one micro-batch."""

    keys = ("image", "caption")
    groups = ("held-out picture, with what is written of it",)
    model: Captioner

    def __init__(self, model: Captioner, options: CaptionerOptions = CaptionerOptions()) -> None:
        super().__init__(model)
        self.options = options

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts, each (B,): `contrastive`; `captioning`, the mean over a caption's tokens; `retrieval`
        within the batch; `tokens`, the share of them that is likeliest."""
        tokens, mask = self.model.tokenize(batch["caption"])
        with torch.no_grad():  # the parameter itself: clamping its use would leave it no gradient
            self.model.log_scale.clamp_(max=math.log(self.options.max_scale))
        out = self.model(batch["image"], tokens, mask)
        with torch.autocast(tokens.device.type, enabled=False):
            caption = upload(torch.tensor([mix(text) for text in batch["caption"]]), tokens.device)
            contrast, retrieval = contrastive_loss(out.image, out.text, caption, self.model.log_scale.exp())
            logits, target, real = out.logits[:, :-1], tokens[:, 1:], mask[:, 1:]  # each place says what follows
            wrong = F.cross_entropy(logits.transpose(1, 2), target.where(real, 0), reduction="none")  # (B, L - 1)
        num = real.sum(dim=1)
        words = (wrong * real).sum(dim=1) / num
        right = ((logits.argmax(dim=2) == target) & real).sum(dim=1) / num
        loss = self.options.contrastive * contrast + self.options.captioning * words
        parts = {"contrastive": contrast, "captioning": words, "retrieval": retrieval, "tokens": right}
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """The pictures alone; `sample_captions` are the words."""
        image: Tensor = batch["image"]
        return image

    def sample_captions(self, batch: Batch) -> list[str]:
        """What is written of the pictures, the likeliest word at every place."""
        return self.model.caption(batch["image"])
