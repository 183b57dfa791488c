"""The contrastive objective (Radford et al. 2021, Figure 3), with repeated captions counted as matches.

B batch of one process · N batch of all processes · D embedding width
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from t2i.config import Config
from t2i.seed import mix, upload
from t2i.stages.clip.model import ClipEncoder
from t2i.types import Batch, Encoder


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, (B, …) → (N, …), with gradients to this process's own rows and to the others'."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    if not x.requires_grad:
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def contrastive_loss(image: Tensor, text: Tensor, caption: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy over the similarities of unit vectors (B, D); returns per-sample loss and accuracy (B,).

    `caption` (B,) holds a number per sentence, the same for equal ones; `scale` is the inverse temperature. Where a
    caption occurs more than once in the batch, every picture with it is a match and the target is spread evenly over
    them (Yang et al. 2022, arXiv 2204.03610, equation 3).
    """
    all_image, all_text, all_captions = gather(image), gather(text), gather(caption)
    same = caption[:, None] == all_captions[None]  # (B, N)
    target = same.float() / same.sum(dim=1, keepdim=True)
    by_image = scale * image @ all_text.T  # (B, N)
    by_text = scale * text @ all_image.T  # (B, N)
    loss = (
        F.cross_entropy(by_image, target, reduction="none") + F.cross_entropy(by_text, target, reduction="none")
    ) / 2
    hit = same.gather(1, by_image.argmax(dim=1, keepdim=True))[:, 0].float()
    return loss, hit


class ClipOptions(Config):
    """`max_scale` bounds the learned inverse temperature, 100 in the paper."""

    max_scale: float = Field(100.0, gt=0)


class ClipTask(nn.Module):
    """Trains both towers of a `ClipEncoder`; needs no encoder beside it.

    Every picture is compared with the captions of all processes, but of one micro-batch: accumulation saves memory and
    not the number of captions to choose from.
    """

    keys = ("image", "caption")

    def __init__(
        self, model: ClipEncoder, encoder: Encoder | None = None, options: ClipOptions = ClipOptions()
    ) -> None:
        super().__init__()
        self.model = model
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
        """CLIP draws nothing: each picture, and below it the one of the batch that fits its caption best."""
        similarity = self.model.encode_text(batch["caption"]).pooled @ self.model.encode_image(batch["image"]).T
        return torch.cat([batch["image"], batch["image"][similarity.argmax(dim=1)]])

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Share of held-out pictures whose best caption of the batch is theirs."""
        return {"retrieval": float(self.loss(batch)["accuracy"].mean())}
