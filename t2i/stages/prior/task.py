"""Training the diffusion prior: mean squared error to the clean embedding (Ramesh et al. 2022, equation 2).

B batch · N draws of time and noise per picture · D width of CLIP embeddings
"""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Encoder
from t2i.diffusion import analytic
from t2i.diffusion.losses import training_losses
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.stages.prior.model import Prior
from t2i.stages.prior.sample import sample


class PriorOptions(Config):
    """How a prior is trained.

    `text_drop` is how often the caption, words and embedding together, is replaced by the empty one. `num_draws` is the
    number of times and noises per picture: the sentence is read once for all of them, so they cost little. `sampling`
    is how embeddings are drawn for sample grids and held-out numbers. `measured_on` pictures, and at least 64, tell the
    mean and spread of embeddings before the first step.
    """

    text_drop: float = Field(0.1, ge=0, le=1)
    measured_on: int = Field(512, ge=1)
    num_draws: int = Field(8, ge=1)
    sampling: Sampling = Sampling(steps=25, sampler="ddpm")


class PriorTask(nn.Module):
    """Trains a `Prior` against a frozen `encoder`."""

    keys = ("image", "caption")

    def __init__(self, model: Prior, encoder: Encoder | None, options: PriorOptions = PriorOptions()) -> None:
        super().__init__()
        if encoder is None or encoder.dim != model.config.clip_dim:
            raise ValueError(f"the prior is of width {model.config.clip_dim}, CLIP of {getattr(encoder, 'dim', None)}")
        self.model = model
        self.encoder = encoder
        self.text_drop, self.num_draws, self.sampling = options.text_drop, options.num_draws, options.sampling
        config = model.config
        self.process = Process.from_schedule(config.schedule, config.num_steps)
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it
        self.parametrisation = model.parametrisation("fixed_small")  # analytic ones are measured when this is over

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Measure the embedding statistics on a few batches before the first step, if they are unknown or `anew`, and
        forget analytic variances, which no longer hold once the network learns on."""
        if self.model.x_0_variance is not None:
            self.model.x_0_variance.fill_(torch.nan)
        if anew or not self.model.calibrated:
            self.model.calibrate(torch.cat([self.encoder.encode_image(batch["image"]) for batch in batches]))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample squared error and the cosine between answer and truth, each (B,)."""
        device = batch["image"].device
        streams = Streams(batch["seed"], "prior")
        dropped = streams.uniform() < self.text_drop  # (B,)
        captions = ["" if drop else caption for caption, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
        with torch.no_grad():
            z_i = self.encoder.encode_image(batch["image"])  # (B, D)
            text = self.encoder.encode_text(captions)
            x_0 = self.model.standardise(z_i)
            x_0 = x_0.repeat_interleave(self.num_draws, dim=0)  # (B·N, D)
        step = upload(streams.integers(self.process.num_steps, self.num_draws).flatten(), device)
        noise = upload(streams.normal(self.num_draws, x_0.shape[1]).flatten(0, 1), device)
        x_t = self.process.q_sample(x_0, step, noise)
        condition = self.model.condition(text).map(lambda x: x.repeat_interleave(self.num_draws, dim=0))
        raw = self.model(x_t, self.process.time(step, x_t), condition)
        losses = training_losses(self.process, self.parametrisation, raw, x_0, x_t, noise, step, "simple")
        with torch.no_grad():
            x_0_hat = self.parametrisation.predict(self.process, raw, x_t, step, clip=False).x_0
            cosine = nn.functional.cosine_similarity(
                x_0_hat * self.model.std + self.model.mean, z_i.repeat_interleave(self.num_draws, dim=0)
            )
        return {
            name: x.view(-1, self.num_draws).mean(dim=1)
            for name, x in {"loss": losses["loss"], "cosine": cosine}.items()
        }

    @torch.no_grad()
    def squared_errors(self, batch: Batch, process: Process) -> Tensor:
        """Of the conditional network, at every one of T steps, (B, T); see `analytic.squared_errors`."""
        model = self.model
        condition = model.condition(self.encoder.encode_text(batch["caption"]))
        denoise = ModelDenoiser(model, condition, process, self.parametrisation, model.config.clamp or False)
        x_0 = model.standardise(self.encoder.encode_image(batch["image"]))  # (B, D)
        return analytic.squared_errors(denoise, process, x_0, Streams(batch["seed"], "analytic"))

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Each picture, and below it the one whose embedding is nearest to what the prior makes of its caption."""
        z_i = self._draw(batch)
        nearest = (z_i @ nn.functional.normalize(self.encoder.encode_image(batch["image"]), dim=1).T).argmax(dim=1)
        return torch.cat([batch["image"], batch["image"][nearest]])

    def _draw(self, batch: Batch) -> Tensor:
        text = self.encoder.encode_text(batch["caption"])
        streams = Streams(batch["seed"], "sample")
        null = self.encoder.encode_text([""] * len(streams)) if self.sampling.guidance != 1 else None
        return sample(self.model, text, streams, self.sampling, null=null, num_candidates=1, variance="fixed_small")

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Cosine of sampled embeddings with the picture's own, and with the sentence's (both paths of the prior)."""
        text = self.encoder.encode_text(batch["caption"])
        z_i = self._draw(batch)
        truth = self.encoder.encode_image(batch["image"])
        return {
            "cosine_image": float(nn.functional.cosine_similarity(z_i, truth).mean()),
            "cosine_text": float(nn.functional.cosine_similarity(z_i, text.pooled).mean()),
        }
