"""Training an upsampler on crops of large pictures and their degraded small versions (unCLIP section 2.1).

B batch · H W pixels of a crop of the large picture · h w of the small one
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Encoder
from t2i.data.augment.bsr import bsr
from t2i.data.augment.degrade import Degradation
from t2i.data.augment.masks import random_masks
from t2i.diffusion.losses import LossKind, Weighting, training_losses
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import LossSecondMoment, Timesteps, draw_steps
from t2i.stages.upsampler.model import Upsampler
from t2i.stages.upsampler.sample import process_of, sample
from t2i.text.tokenizers import tokenize


class UpsamplerOptions(Config):
    """How an upsampler is trained.

    `degradation` is what happens to the small picture before the network sees it, so that it forgives the stage below;
    `kind` and `weighting` as in `training_losses`; `timesteps` "loss_second_moment" draws steps by what they cost
    (`LossSecondMoment`); `sampling` is how the sample grids are drawn.
    """

    degradation: Degradation = Degradation()
    kind: LossKind = "hybrid"
    weighting: Weighting = "uniform"
    timesteps: Timesteps = "uniform"
    sampling: Sampling = Sampling(steps=10)


class UpsamplerTask(nn.Module):
    """Trains an `Upsampler` on the batch's own pictures, crops of the large ones; needs no encoder."""

    def __init__(
        self, model: Upsampler, encoder: Encoder | None = None, options: UpsamplerOptions = UpsamplerOptions()
    ) -> None:
        super().__init__()
        c = model.config
        if c.text is not None and c.tokenizer is None:
            raise ValueError("text needs a tokenizer to read captions with, got None")
        if c.last_step:
            raise ValueError("last_step=True: the two networks are trained apart, each without it")
        ports = {"caption": c.text is not None, "label": c.num_classes is not None}
        self.keys: tuple[str, ...] = ("image", *(key for key, there in ports.items() if there))
        if options.sampling.guidance != 1:
            raise ValueError(f"nothing to guide: task.sampling.guidance must be 1, got {options.sampling.guidance}")
        self.model = model
        self.options = options
        self.process = process_of(model)
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        self.memory = LossSecondMoment(self.process.num_steps) if options.timesteps == "loss_second_moment" else None
        self.parametrisation = c.parametrisation
        self.tokenizer = c.tokenizer.build() if c.tokenizer is not None else None

    def condition(self, batch: Batch, low_res: Tensor) -> Condition:
        """The upsampler's condition for a batch and its small pictures (B, 3, h, w)."""
        image, c = batch["image"], self.model.config
        tokens = mask = labels = known = None
        if self.tokenizer is not None:
            tokens, mask = (upload(x, image.device) for x in tokenize(self.tokenizer, batch["caption"]))
        if c.num_classes is not None:
            labels = batch["label"]
        if c.inpaint:
            known = image, upload(random_masks(Streams(batch["seed"], "mask"), image.shape[-1]), image.device)
        return self.model.condition(low_res, tokens, mask, labels, known)

    def low_res(self, image: Tensor) -> Tensor:
        """Area average of a crop, (B, 3, H, W) → (B, 3, h, w)."""
        return F.avg_pool2d(image, self.model.config.magnification)

    def degraded(self, image: Tensor, streams: Streams) -> Tensor:
        """Crops as the network sees them in training, (B, 3, H, W) → (B, 3, h, w)."""
        degradation = self.options.degradation
        if degradation.kind == "blur":
            return degradation(self.low_res(image), streams)
        return bsr(image, self.model.config.magnification, streams, light=degradation.kind == "bsr_light")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0 = batch["image"]  # (B, 3, H, W)
        streams = Streams(batch["seed"], "upsampler")
        memory = self.memory if self.model.training else None
        step = draw_steps(streams, self.process.num_steps, x_0.device, memory=memory)  # (B,)
        noise = upload(streams.normal(*x_0.shape[1:]), x_0.device)  # (B, 3, H, W)
        condition = self.condition(batch, self.degraded(x_0, streams))
        x_t = self.process.q_sample(x_0, step, noise)
        raw = self.model(x_t, self.process.time(step, x_t), condition)
        losses = training_losses(
            self.process, self.parametrisation, raw, x_0, x_t, noise, step, self.options.kind, self.options.weighting
        )
        return losses if memory is None else losses | {"loss": memory.weigh(step, losses["loss"])}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Enlarged small pictures, what the upsampler makes of them, and the truth, (3B, 3, H, W)."""
        low_res = self.low_res(batch["image"])
        condition = self.condition(batch, low_res)
        drawn = sample(self.model, condition, Streams(batch["seed"], "sample"), self.options.sampling)
        return torch.cat([self.model.enlarge(low_res), drawn, batch["image"]])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB of what is drawn, and for comparison of mere enlargement."""
        enlarged, drawn, truth = self.sample(batch).chunk(3)
        return {"psnr": psnr(drawn, truth), "psnr_enlarged": psnr(enlarged, truth)}


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a batch (B, 3, H, W) in [-1, 1], of its mean squared error: the mean of the
    pictures' own ratios would be that of empty crops."""
    error = (image - truth).float().square().mean()
    return float(10 * torch.log10(4 / error.clamp(min=1e-10)))
