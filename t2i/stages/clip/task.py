"""Training CLIP: both towers, by contrast (Radford et al. 2021).

B batch · D embedding width
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import mix, upload
from t2i.core.types import Batch, Task
from t2i.nn.contrastive import contrastive_loss
from t2i.stages.clip.model import ClipEncoder


class ClipOptions(Config):
    """How CLIP is trained."""

    max_scale: float = Field(100.0, gt=0, description="bound of the learned inverse temperature, 100 in the paper")


class ClipTask(Task):
    """Trains both towers of a `ClipEncoder`.

    Every picture is compared with the captions of all processes, but of one micro-batch: accumulation saves memory and
    not the number of captions to choose from.
    """

    keys = ("image", "caption")
    groups = ("held-out picture", "the one that fits its caption best")
    takes_prompts = True
    model: ClipEncoder

    def __init__(self, model: ClipEncoder, options: ClipOptions = ClipOptions()) -> None:
        super().__init__(model)
        self.max_scale = options.max_scale

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and retrieval `accuracy` within the batch, each (B,)."""
        image = self.model.encode_image(batch["image"])  # (B, D)
        tokens, mask = self.model.tokenize(batch["caption"])
        text = self.model.encode_tokens(tokens, mask).pooled  # (B, D)
        with torch.no_grad():  # the parameter itself, as in the paper: clamping its use would leave it no gradient
            self.model.clip.logit_scale.clamp_(max=math.log(self.max_scale))
        scale = self.model.clip.logit_scale.exp()
        with torch.autocast(image.device.type, enabled=False):
            caption = upload(torch.tensor([mix(text) for text in batch["caption"]]), image.device)
            loss, accuracy = contrastive_loss(image, text, caption, scale)
        return {"loss": loss, "accuracy": accuracy.detach()}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """CLIP draws nothing: each picture, and the one of the batch that fits its caption best."""
        return torch.cat([batch["image"], self.draw_prompts(batch)])

    @torch.no_grad()
    def draw_prompts(self, asked: Batch) -> Tensor:
        """The held-out pictures that fit sentences best."""
        similarity = self.model.encode_text(asked["caption"]).pooled @ self.model.encode_image(asked["image"]).T
        return torch.as_tensor(asked["image"][similarity.argmax(dim=1)])

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Share of held-out pictures whose best caption of the batch is theirs."""
        return {"retrieval": float(self.loss(batch)["accuracy"].mean())}
