"""Training an upsampler on crops of large pictures and their degraded small versions (unCLIP section 2.1).

B batch · H W pixels of a crop of the large picture · h w of the small one
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Condition, Task
from t2i.data.augment.bsr import bsr
from t2i.data.augment.degrade import Degradation
from t2i.data.augment.masks import random_masks
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.timesteps import LossSecondMoment, Timesteps
from t2i.nn.ports import Given
from t2i.stages.upsampler.model import Upsampler
from t2i.stages.upsampler.sample import sample
from t2i.text.tokenizers import tokenize


class UpsamplerOptions(Objective):
    """How an upsampler is trained."""

    degradation: Degradation = Field(
        Degradation(),
        description="what happens to the small picture before the network sees it, so that it forgives the stage below",
    )
    timesteps: Timesteps = Field("uniform", description="loss_second_moment draws steps by what they cost")
    sampling: Sampling = Field(Sampling(steps=10), description="how the sample grids are drawn")


class UpsamplerTask(Task):
    """Trains an `Upsampler` on the batch's own pictures, crops of the large ones."""

    groups = ("large picture", "its small one, enlarged", "drawn")
    model: Upsampler

    def __init__(self, model: Upsampler, options: UpsamplerOptions = UpsamplerOptions()) -> None:
        super().__init__(model)
        c = model.config
        if c.ports.text is not None and c.ports.text.tokenizer is None:
            raise ValueError("text needs a tokenizer to read captions with, got None")
        if c.last_step:
            raise ValueError("last_step=True: the two networks are trained apart, each without it")
        if options.sampling.guidance != 1:
            raise ValueError(f"nothing to guide: task.sampling.guidance must be 1, got {options.sampling.guidance}")
        reads = {"caption": c.ports.text is not None, "label": c.ports.classes is not None}
        self.keys = ("image", *(key for key, there in reads.items() if there))
        self.options, self.process = options, c.diffusion.process()
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        if options.timesteps == "loss_second_moment":
            self.memory = LossSecondMoment(self.process.num_steps)
        spelled = c.ports.text.tokenizer if c.ports.text is not None else None
        self.tokenizer = spelled.build() if spelled is not None else None

    def condition(self, batch: Batch, low_res: Tensor) -> Condition:
        """The upsampler's condition for a batch and its small pictures (B, 3, h, w)."""
        image, ports = batch["image"], self.model.config.ports
        text = picture = None
        if self.tokenizer is not None:
            tokens, mask = (upload(x, image.device) for x in tokenize(self.tokenizer, batch["caption"]))
            text = tokens, mask
        if ports.masked is not None:
            picture = image, upload(random_masks(Streams(batch["seed"], "mask"), image.shape[-1]), image.device)
        labels = batch["label"] if ports.classes is not None else None
        return self.model.condition(low_res, Given(len(image), text=text, classes=labels, masked=picture))

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
        x_0, streams, o = batch["image"], Streams(batch["seed"], "upsampler"), self.options  # (B, 3, H, W)
        return diffusion_loss(
            self.model, self.model.config.diffusion, x_0,
            lambda _: self.condition(batch, self.degraded(x_0, streams)), streams,
            o, memory=self.memory if self.model.training else None,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Large pictures, their small ones enlarged, and what the upsampler makes of these, (3B, 3, H, W)."""
        low_res = self.low_res(batch["image"])
        condition = self.condition(batch, low_res)
        drawn = sample(self.model, condition, Streams(batch["seed"], "sample"), self.options.sampling)
        return torch.cat([batch["image"], self.model.enlarge(low_res), drawn])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB of what is drawn, and for comparison of mere enlargement."""
        truth, enlarged, drawn = self.sample(batch).chunk(3)
        return {"psnr": psnr(drawn, truth), "psnr_enlarged": psnr(enlarged, truth)}


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a batch (B, 3, H, W) in [-1, 1], of its mean squared error: the mean of the
    pictures' own ratios would be that of empty crops."""
    error = (image - truth).float().square().mean()
    return float(10 * torch.log10(4 / error.clamp(min=1e-10)))
