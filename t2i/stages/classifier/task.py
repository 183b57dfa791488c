"""Training a classifier: cross-entropy on pictures noised by steps drawn evenly (Dhariwal & Nichol 2021, section 4).

B batch · S side of the picture
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Task
from t2i.stages.classifier.model import Classifier, check_labels


class ClassifierOptions(Config):
    """Nothing about this objective is a matter of choice."""


class ClassifierTask(Task):
    """Trains a `Classifier` on pictures with labels."""

    keys = ("image", "label")
    model: Classifier

    def __init__(self, model: Classifier, options: ClassifierOptions = ClassifierOptions()) -> None:
        super().__init__(model)
        self.process = model.config.diffusion.process()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the cross-entropy in nats, and `accuracy`, whether the likeliest class is the label; each (B,)."""
        streams = Streams(batch["seed"], "classifier")
        return self._judge(batch, streams.integers(self.process.num_steps), streams)

    def _judge(self, batch: Batch, step: Tensor, streams: Streams) -> dict[str, Tensor]:
        """The same at the given steps (B,)."""
        x_0, label = batch["image"], batch["label"]  # (B, 3, S, S) (B,)
        check_labels(label, len(x_0), self.model.config.num_classes)
        step, noise = upload(step, x_0.device), upload(streams.normal(*x_0.shape[1:]), x_0.device)
        x_t = self.process.q_sample(x_0, step, noise)
        logits = self.model(x_t, self.process.time(step, x_t))  # (B, K)
        hit = (logits.detach().argmax(dim=1) == label).float()
        return {"loss": F.cross_entropy(logits, label, reduction="none"), "accuracy": hit}

    @torch.no_grad()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Accuracy in the cleanest and in the noisiest quarter of the steps."""
        quarter, last = max(self.process.num_steps // 4, 1), self.process.num_steps - 1
        streams = Streams(batch["seed"], "classifier metrics")
        step = streams.integers(quarter)  # (B,)
        judged = {name: self._judge(batch, s, streams) for name, s in (("clean", step), ("noisy", last - step))}
        return {f"accuracy_{name}": float(losses["accuracy"].mean()) for name, losses in judged.items()}
