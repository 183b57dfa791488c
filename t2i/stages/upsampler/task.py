"""Training an upsampler on crops of large pictures and their degraded small versions (unCLIP section 2.1).

B batch · H W pixels of a crop of the large picture · h w of the small one
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.config import Config
from t2i.data.degrade import Degradation
from t2i.diffusion.losses import LossKind, Weighting, training_losses
from t2i.diffusion.sampling import Sampling
from t2i.seed import Streams, upload
from t2i.stages.upsampler.model import Upsampler
from t2i.stages.upsampler.sample import process_of, rounded, sample
from t2i.types import Batch, Encoder


class UpsamplerOptions(Config):
    """How an upsampler is trained.

    `degradation` is what happens to the small picture before the network sees it, so that it forgives the stage below;
    `kind` and `weighting` as in `training_losses`; `sampling` is how the sample grids are drawn.
    """

    degradation: Degradation = Degradation()
    kind: LossKind = "hybrid"
    weighting: Weighting = "uniform"
    sampling: Sampling = Sampling(steps=10)


class UpsamplerTask(nn.Module):
    """Trains an `Upsampler` on the batch's own pictures, which are the high-resolution crops; needs no encoder."""

    keys = ("image",)

    def __init__(
        self, model: Upsampler, encoder: Encoder | None = None, options: UpsamplerOptions = UpsamplerOptions()
    ) -> None:
        super().__init__()
        c = model.config
        if c.text is not None or c.num_classes is not None:
            raise ValueError(
                "only upsamplers without text and labels are trained here; text and num_classes must be null"
            )
        if options.sampling.guidance != 1:
            raise ValueError(f"nothing to guide: task.sampling.guidance must be 1, got {options.sampling.guidance}")
        self.model = model
        self.options = options
        self.process = process_of(model)
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        self.parametrisation = c.parametrisation

    def low_res(self, image: Tensor) -> Tensor:
        """Area average of a crop, rounded to 8 bits as in sampling, (B, 3, H, W) → (B, 3, h, w)."""
        return rounded(F.avg_pool2d(image, self.model.config.magnification))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, `mse` and, with learned variance, `vb` in bits per dimension; each (B,)."""
        x_0 = batch["image"]  # (B, 3, H, W)
        streams = Streams(batch["seed"], "upsampler")
        step = upload(streams.integers(self.process.num_steps), x_0.device)  # (B,)
        noise = upload(streams.normal(*x_0.shape[1:]), x_0.device)  # (B, 3, H, W)
        condition = self.model.condition(self.options.degradation(self.low_res(x_0), streams))
        x_t = self.process.q_sample(x_0, step, noise)
        raw = self.model(x_t, self.process.time(step, x_t), condition)
        return training_losses(
            self.process, self.parametrisation, raw, x_0, x_t, noise, step, self.options.kind, self.options.weighting
        )

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Enlarged small pictures, what the upsampler makes of them, and the truth, (3B, 3, H, W)."""
        low_res = self.low_res(batch["image"])
        drawn = sample(self.model, low_res, Streams(batch["seed"], "sample"), self.options.sampling)
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
