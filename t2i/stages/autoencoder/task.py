"""Training an autoencoder: pictures come back, seen by a network that sees, under a small KL term, and in the end sharp
against a discriminator (Rombach et al. 2022, section 3.1 and appendix G).

B batch · C channels of the latents · H W pixels
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.measures import psnr
from t2i.core.seed import Streams, upload
from t2i.core.types import Batch, Phase, Task
from t2i.stages.autoencoder.discriminator import Discriminator, adaptive_weight, hinge
from t2i.stages.autoencoder.model import Autoencoder, Posterior
from t2i.stages.autoencoder.perceptual import Distance, FeatureMaps, Lpips, LpipsFiles

_FIRST = 16  # pictures that are measured before the first step
_SHARE = 0.01  # of a step's latents in what is measured of all


class AutoencoderOptions(Config):
    """How an autoencoder is trained.

    The losses are sums over a picture, as latent diffusion has them: |x - x̂| of all pixels and channels, the KL term of
    all latents; a perceptual distance counts once for each of the 3 · H · W numbers.
    """

    reconstruction: Literal["l1", "l2"] = Field("l1", description="|x - x̂|, or its square")
    kl: float = Field(1e-6, ge=0, description="weight of the KL term")
    perceptual: float = Field(
        1.0, ge=0, description="weight of the perceptual distance, where lpips or needs.perceptual says what sees"
    )
    lpips: LpipsFiles | None = Field(None, description="files of LPIPS, instead of needs.perceptual")
    adversarial: float = Field(
        0.0,
        ge=0,
        description="weight of the discriminator, over the adaptive one; 0.5 in latent diffusion, 0 for none",
    )
    adversarial_start: int = Field(
        50_000, ge=0, le=10**9, description="optimiser steps of the autoencoder before there is a discriminator"
    )
    decoder_only: bool = Field(False, description="leave the encoder, and so all latents, as they are")


class AutoencoderTask(Task):
    """Trains an `Autoencoder`, and its `Discriminator` if there is one."""

    needs: ClassVar = {"perceptual": FeatureMaps}
    groups = ("held-out picture", "reconstruction")
    model: Autoencoder

    def __init__(
        self,
        model: Autoencoder,
        options: AutoencoderOptions = AutoencoderOptions(),
        *,
        perceptual: FeatureMaps | None = None,
    ) -> None:
        super().__init__(model)
        if perceptual is not None and options.lpips is not None:
            raise ValueError("both task.lpips and needs.perceptual say what sees: leave one out")
        asked = options.perceptual and "perceptual" in options.model_fields_set
        if asked and perceptual is None and options.lpips is None:
            raise ValueError(f"task.perceptual={options.perceptual:g}: name what sees, task.lpips or needs.perceptual")
        self.options, self.distance = options, _distance(options, perceptual)
        self.discriminator = Discriminator() if options.adversarial else None
        self._step: int | None = None
        if options.decoder_only:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)

    def phases(self) -> Sequence[Phase]:
        """The autoencoder, which is averaged and exported; then its discriminator, on the same batch."""
        main = Phase("main", self.model, self.loss)
        if self.discriminator is None:
            return [main]
        return [main, Phase("discriminator", self.discriminator, self.discriminator_loss)]

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Measure the latents of the first pictures; from then on training follows them.

        Raises UsageError where an encoder is to stay as it is that has learned nothing.
        """
        if self.options.decoder_only:
            if not self.model.encoder.mid.block1.conv2.weight.any():  # where training begins
                raise UsageError(
                    "task.decoder_only=true leaves the encoder as it is, and this one is untrained: name an "
                    "autoencoder to start from, init=FOLDER"
                )
        else:
            few = next(iter(batches))["image"][:_FIRST].split(4)  # pictures in full size are large
            self.model.measure(torch.cat([self.model.posterior(image).mean for image in few]))

    def after_step(self, step: int) -> None:
        """Counts, for the discriminator."""
        self._step = step
        if self.discriminator is not None:
            self.discriminator.step.fill_(step)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts, each (B,): `reconstruction` per number of the picture, `kl` per picture, `perceptual`
        and, in training, `adversarial`."""
        x, o = batch["image"], self.options
        posterior, drawn = self._reconstruct(batch)
        apart = (drawn - x.float()).flatten(1)
        apart = apart.abs() if o.reconstruction == "l1" else apart.square()  # (B, 3·H·W)
        kl = posterior.kl()
        parts = {"reconstruction": apart.mean(dim=1), "kl": kl}
        likelihood = apart.sum(dim=1)
        if self.distance is not None:
            parts["perceptual"] = self.distance(x, drawn)
            likelihood = likelihood + o.perceptual * apart.shape[1] * parts["perceptual"]
        loss = likelihood + o.kl * kl
        if self.discriminator is not None and self.model.training and self._is_adversarial:
            fooled = -self.discriminator(drawn).mean(dim=(1, 2, 3))
            weight = adaptive_weight(likelihood.mean(), fooled.mean(), self.model.decoder.conv_out.weight)
            loss, parts["adversarial"] = loss + o.adversarial * weight * fooled, fooled
        if self.model.training and not o.decoder_only:
            self.model.measure(posterior.mean, _SHARE)
        return {"loss": loss, **parts}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (B,) of pictures and of what comes back of them; nothing to learn before `adversarial_start`."""
        assert self.discriminator is not None
        if not self._is_adversarial:
            nothing = torch.stack([0 * p.sum() for p in self.discriminator.parameters()]).sum()
            return {"loss": nothing.expand(len(batch["image"]))}
        with torch.no_grad():
            _, drawn = self._reconstruct(batch)
        return {"loss": hinge(self.discriminator(batch["image"]), self.discriminator(drawn))}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Each picture, and what comes back of the mean of its latents, (2B, 3, H, W)."""
        return torch.cat([batch["image"], self.model(batch["image"]).clamp(-1, 1)])

    @torch.no_grad()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """`psnr`, the peak signal-to-noise ratio in dB: 10 log₁₀(2² / mean squared error), averaged over pictures."""
        image = batch["image"].float()
        return {"psnr": float(psnr(image, self.model(image).clamp(-1, 1)).mean())}

    def _reconstruct(self, batch: Batch) -> tuple[Posterior, Tensor]:
        """The distribution of the latents, and what the decoder makes of a sample; of the mean out of training."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.decoder_only):
            posterior = self.model.posterior(batch["image"])
        z = posterior.mean
        if self.model.training:
            z = posterior.sample(upload(Streams(batch["seed"], "autoencoder").normal(*z.shape[1:]), z.device))
        return posterior, self.model.decode(z)

    @property
    def _is_adversarial(self) -> bool:
        if self._step is None:  # of a run that goes on
            assert self.discriminator is not None
            self._step = int(self.discriminator.step)
        return self._step >= self.options.adversarial_start


def _distance(options: AutoencoderOptions, network: FeatureMaps | None) -> nn.Module | None:
    """(x, x̂) → (B,), or None where nothing sees."""
    if not options.perceptual or (network is None and options.lpips is None):
        return None
    return Lpips.load(options.lpips) if options.lpips is not None else Distance(network)  # type: ignore[arg-type]
