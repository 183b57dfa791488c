"""Training a rewriter: cross entropy of a picture's descriptive caption, word by word, given its short one.

B batch · L tokens
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.core.config import Config
from t2i.core.types import Batch, Task
from t2i.stages.rewriter.model import Rewriter

_LOOKED_AT = 8  # sentences that are written for the metrics of a batch


class RewriterOptions(Config):
    """Nothing about this objective is a matter of choice."""


class RewriterTask(Task):
    """Trains a `Rewriter` on both captions of every picture, which is not looked at."""

    keys = ("short", "descriptive")
    model: Rewriter

    def __init__(self, model: Rewriter, options: RewriterOptions = RewriterOptions()) -> None:
        super().__init__(model)
        self.options = options

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the mean over the descriptive caption's tokens in nats, and `accuracy`, the share of them that is
        likeliest; each (B,)."""
        tokens, written = self.model.pairs(batch["short"], batch["descriptive"])  # (B, L) (B, L)
        logits, target, real = self.model(tokens[:, :-1]), tokens[:, 1:], written[:, 1:]
        nats = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # (B, L - 1)
        right = (logits.detach().argmax(dim=2) == target) & real
        num = real.sum(dim=1)
        return {"loss": (nats * real).sum(dim=1) / num, "accuracy": right.sum(dim=1) / num}

    @torch.no_grad()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Of some sentences that it writes: the share of the words asked for that stand in them (`kept`), and their
        number of words."""
        shorts = batch["short"][:_LOOKED_AT]
        pairs = [(s.split(), set(t.replace(".", "").replace(",", "").split())) for s, t in
                 zip(shorts, self.model.rewrite(shorts), strict=True)]  # fmt: skip
        kept = [sum(word in text for word in asked) / max(len(asked), 1) for asked, text in pairs]
        return {"kept": sum(kept) / len(kept), "words": sum(len(text) for _, text in pairs) / len(pairs)}
