"""Training a noised CLIP by contrast, at timesteps drawn evenly (Nichol et al. 2021, section 2.4).

B batch · S side of the picture · D embedding width
"""

import torch
from torch import Tensor

from t2i.core.config import Config
from t2i.core.seed import Streams, mix, upload
from t2i.core.types import Batch, Task
from t2i.nn.contrastive import contrastive_loss
from t2i.stages.noised_clip.model import NoisedClip


class NoisedClipOptions(Config):
    """Nothing about this objective is a matter of choice; its temperature is the model's."""


class NoisedClipTask(Task):
    """Trains both towers of a `NoisedClip`.

    Every picture is compared with the captions of all processes, but of one micro-batch, as in CLIP's own training.
    """

    keys = ("image", "caption")
    model: NoisedClip

    def __init__(self, model: NoisedClip, options: NoisedClipOptions = NoisedClipOptions()) -> None:
        super().__init__(model)
        self.process = model.config.diffusion.process()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and retrieval `accuracy` within the batch, each (B,)."""
        streams = Streams(batch["seed"], "noised_clip")
        return self._contrast(batch, streams.integers(self.process.num_steps), streams)

    def _contrast(self, batch: Batch, step: Tensor, streams: Streams) -> dict[str, Tensor]:
        """The same at the given steps (B,)."""
        x_0 = batch["image"]  # (B, 3, S, S)
        step, noise = upload(step, x_0.device), upload(streams.normal(*x_0.shape[1:]), x_0.device)
        x_t = self.process.q_sample(x_0, step, noise)
        image = self.model.encode_image(x_t, self.process.time(step, x_t))  # (B, D)
        text = self.model.encode_text(*self.model.tokenize(batch["caption"]))  # (B, D)
        caption = upload(torch.tensor([mix(text) for text in batch["caption"]]), x_0.device)
        with torch.autocast(x_0.device.type, enabled=False):
            loss, accuracy = contrastive_loss(image, text, caption, self.model.config.scale)
        return {"loss": loss, "accuracy": accuracy.detach()}

    @torch.no_grad()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Share of pictures whose best caption is theirs, in the cleanest and in the noisiest quarter of the steps."""
        quarter, last = max(self.process.num_steps // 4, 1), self.process.num_steps - 1
        streams = Streams(batch["seed"], "noised_clip metrics")
        step = streams.integers(quarter)  # (B,)
        judged = {name: self._contrast(batch, s, streams) for name, s in (("clean", step), ("noisy", last - step))}
        return {f"retrieval_{name}": float(losses["accuracy"].mean()) for name, losses in judged.items()}
