"""Training the diffusion prior: mean squared error to the clean embedding (Ramesh et al. 2022, equation 2).

B batch · N draws of time and noise per picture · D width of CLIP embeddings
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams
from t2i.core.types import Batch, Encoder, Prediction, Task
from t2i.diffusion import analytic
from t2i.diffusion.losses import Objective, diffusion_loss
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.stages.prior.model import Prior
from t2i.stages.prior.sample import sample


class PriorOptions(Config):
    """How a prior is trained."""

    text_drop: float = Field(
        0.1, ge=0, le=1, description="how often the caption, words and embedding together, is replaced by the empty one"
    )
    measured_on: int = Field(
        512, ge=1, description="pictures, at least 64, that tell mean and spread of embeddings before the first step"
    )
    num_draws: int = Field(
        8, ge=1, description="times and noises per picture; the sentence is read once for all, so they cost little"
    )
    sampling: Sampling = Field(Sampling(steps=25, sampler="ddpm"), description="for sample grids and held-out numbers")


class PriorTask(Task):
    """Trains a `Prior` against a frozen `clip`."""

    needs: ClassVar = {"clip": Encoder}
    keys = ("image", "caption")
    groups = ("held-out picture", "the one nearest to what its caption becomes")
    takes_prompts = True
    model: Prior

    def __init__(self, model: Prior, options: PriorOptions = PriorOptions(), *, clip: Encoder | None = None) -> None:
        super().__init__(model)
        if clip is None or clip.dim != model.config.clip_dim:
            raise ValueError(f"the prior is of width {model.config.clip_dim}, CLIP of {getattr(clip, 'dim', None)}")
        self.clip, self.options = clip, options
        self.diffusion, _ = model.diffusion("fixed_small")  # analytic variances are measured when this is over
        self.process = self.diffusion.process()
        self.process.respace(options.sampling.steps)  # refuses what it cannot do before the first grid needs it

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Measure the embedding statistics before the first step, if they are unknown or `anew`, and forget analytic
        variances, which no longer hold once the network learns on."""
        if self.model.x_0_variance is not None:
            self.model.x_0_variance.fill_(torch.nan)
        if anew or not self.model.calibrated:
            first = islice(batches, max(1, self.options.measured_on // 64))
            self.model.calibrate(torch.cat([self.clip.encode_image(batch["image"]) for batch in first]))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample squared error and the cosine between answer and truth, each (B,)."""
        streams, num_draws = Streams(batch["seed"], "prior"), self.options.num_draws
        dropped = streams.uniform() < self.options.text_drop  # (B,)
        captions = ["" if drop else caption for caption, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
        with torch.no_grad():
            z_i = self.clip.encode_image(batch["image"]).repeat_interleave(num_draws, dim=0)  # (B·N, D)
            text = self.clip.encode_text(captions)
        condition = self.model.condition(text).map(lambda x: x.repeat_interleave(num_draws, dim=0))

        def cosine(p: Prediction) -> dict[str, Tensor]:
            z = p.x_0 * self.model.std + self.model.mean
            return {"cosine": nn.functional.cosine_similarity(z, z_i)}

        losses = diffusion_loss(
            self.model, self.diffusion, self.model.standardise(z_i), condition, streams,
            Objective(kind="simple"), num_draws=num_draws, also=cosine,
        )  # fmt: skip
        return {name: losses[name] for name in ("loss", "cosine")}

    @torch.no_grad()
    def squared_errors(self, batch: Batch, process: Process) -> Tensor:
        """Of the conditional network, at every one of T steps, (B, T); see `analytic.squared_errors`."""
        model = self.model
        condition = model.condition(self.clip.encode_text(batch["caption"]))
        denoise = ModelDenoiser(model, condition, process, self.diffusion.parametrisation(), model.config.clamp)
        x_0 = model.standardise(self.clip.encode_image(batch["image"]))  # (B, D)
        return analytic.squared_errors(denoise, process, x_0, Streams(batch["seed"], "analytic"))

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Each picture, and the one whose embedding is nearest to what the prior makes of its caption."""
        return torch.cat([batch["image"], self.draw_prompts(batch)])

    @torch.no_grad()
    def draw_prompts(self, asked: Batch) -> Tensor:
        """The held-out pictures whose embeddings are nearest to what the prior makes of sentences."""
        z_i = self._draw(asked)
        nearest = (z_i @ nn.functional.normalize(self.clip.encode_image(asked["image"]), dim=1).T).argmax(dim=1)
        return torch.as_tensor(asked["image"][nearest])

    def _draw(self, batch: Batch) -> Tensor:
        text, streams = self.clip.encode_text(batch["caption"]), Streams(batch["seed"], "sample")
        sampling = replace(self.options.sampling, variance="fixed_small")
        null = self.clip.encode_text([""] * len(streams)) if sampling.guidance != 1 else None
        return sample(self.model, text, streams, sampling, null=null, num_candidates=1)

    @torch.inference_mode()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Cosine of sampled embeddings with the picture's own, and with the sentence's (both paths of the prior)."""
        text = self.clip.encode_text(batch["caption"])
        z_i = self._draw(batch)
        truth = self.clip.encode_image(batch["image"])
        return {
            "cosine_image": float(nn.functional.cosine_similarity(z_i, truth).mean()),
            "cosine_text": float(nn.functional.cosine_similarity(z_i, text.pooled).mean()),
        }
