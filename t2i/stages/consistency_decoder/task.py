"""Training a consistency decoder: a teacher that denoises pictures beside their latents, then its distillation.

B batch · C channels of latents · h w places of latents · H W pixels
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.core.measures import psnr
from t2i.core.seed import Streams, upload
from t2i.core.sizes import Side
from t2i.core.types import Batch, LatentCodec, Task
from t2i.diffusion.consistency import Distillation, consistency_loss, denoising_loss
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig
from t2i.stages.consistency_decoder.sample import sample
from t2i.stages.follow import check_scale, same_neighbour


class ConsistencyDecoderOptions(Config):
    """How a consistency decoder is trained."""

    objective: Literal["denoising", "consistency"] = Field(
        "denoising",
        description="of the teacher, or of what is distilled: of needs.teacher, where there is one, else of pictures",
    )
    distillation: Distillation = Field(Distillation(), description="for the objective consistency")
    time_shift: float = Field(1.0, gt=0, description="for denoising: crowds the steps, see `timesteps.shifted`")
    latent_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="standard deviation, at most, of noise on latents in training, so that generated ones are forgiven",
    )
    crop: Side | None = Field(
        None, description="side of random windows of the pictures, and of their latents alike, in pixels; null for all"
    )


class ConsistencyDecoderTask(Task):
    """Trains a `ConsistencyDecoder` on pictures beside the latents that a frozen `autoencoder` makes of them, or that
    samples bring as `latents` (C, H / factor, W / factor)."""

    needs: ClassVar = {"autoencoder": LatentCodec, "teacher": ConsistencyDecoder}
    groups = ("held-out picture", "drawn")
    model: ConsistencyDecoder

    def __init__(
        self,
        model: ConsistencyDecoder,
        options: ConsistencyDecoderOptions = ConsistencyDecoderOptions(),
        *,
        autoencoder: LatentCodec | None = None,
        teacher: ConsistencyDecoder | None = None,
    ) -> None:
        super().__init__(model)
        c, distils = model.config, options.objective == "consistency"
        if teacher is not None and not distils:
            raise ValueError(f"task.objective={options.objective!r} has no use for a teacher, consistency has")
        if teacher is not None and (differs := difference(c, teacher.config)):
            raise ValueError(f"the teacher was trained on another model.{differs} than this decoder will be")
        self.autoencoder, self.teacher, self.options = autoencoder, teacher, options
        self.keys = ("image",) if autoencoder is not None else ("image", "latents")
        points = c.diffusion.grid(options.distillation.num_points)
        self.grid = sorted({*points, *c.diffusion.steps()})  # where it is asked, it learns
        if distils:
            self.memory = deepcopy(model).requires_grad_(False).eval()  # the average of the student, its target

    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Refuses latents that are not of about unit variance. The target begins as the student, which may have been
        started from its teacher meanwhile."""
        check_scale(self.latents, batches)
        self.renew()

    def renew(self) -> None:
        """The target is the student as it is now."""
        if self.memory is not None:
            self.memory.load_state_dict(self.model.state_dict())

    def after_step(self, step: int) -> None:
        """The target follows the student."""
        if self.memory is None:
            return
        with torch.no_grad():
            ours, theirs = (list(m.parameters()) for m in (self.memory, self.model))
            torch._foreach_lerp_(ours, theirs, 1 - self.options.distillation.target_decay)

    def latents(self, batch: Batch) -> Tensor:
        """Latents (B, C, h, w) of a batch: its own, or those of its pictures.

        Raises UsageError for some that are not of the pictures' size.
        """
        image, factor = batch["image"], self.model.config.latents.factor
        if "latents" not in batch:
            assert self.autoencoder is not None
            with torch.no_grad():
                return self.autoencoder.encode_latents(image)
        z: Tensor = batch["latents"]
        if (wanted := tuple(side // factor for side in image.shape[2:])) != tuple(z.shape[2:]):
            raise UsageError(f"latents of {tuple(z.shape[2:])} places, but these pictures have {wanted}")
        return z

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and `mse` or `distance` for comparison; each (B,)."""
        streams, o = Streams(batch["seed"], "consistency_decoder"), self.options
        batch = batch if o.crop is None else self._cropped(batch, o.crop, streams)
        x_0, z, diffusion = batch["image"], self.latents(batch), self.model.config.diffusion
        if o.latent_noise:
            std = upload(o.latent_noise * streams.uniform(1, 1, 1), z.device)  # (B, 1, 1, 1)
            z = z + std * upload(streams.normal(*z.shape[1:]), z.device)
        condition = self.model.condition(z)
        if o.objective == "denoising":
            return denoising_loss(self.model.estimate, x_0, condition, streams, time_shift=o.time_shift)
        target, teacher = self.memory.estimate, None if self.teacher is None else self.teacher.estimate
        return consistency_loss(
            self.model.estimate, target, teacher, diffusion.process(), self.grid, x_0, condition, streams,
            o.distillation, sigma_data=diffusion.sigma_data,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """Pictures, and what is drawn of their latents, (2B, 3, H, W)."""
        return torch.cat([batch["image"], sample(self.model, self.latents(batch), Streams(batch["seed"], "sample"))])

    @torch.no_grad()
    def metrics(self, batch: Batch) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB of what is drawn, and for comparison of what the autoencoder decodes,
        averaged over pictures."""
        truth, z = batch["image"], self.latents(batch)
        drawn = sample(self.model, z, Streams(batch["seed"], "sample"))
        found = {"psnr": float(psnr(drawn, truth).mean())}
        if self.autoencoder is not None:
            found["psnr_autoencoder"] = float(psnr(self.autoencoder.decode_latents(z).clamp(-1, 1), truth).mean())
        return found

    def _cropped(self, batch: Batch, side: int, streams: Streams) -> Batch:
        """Windows of `side` pixels at places of the latents, and of the latents, where the batch brings them."""
        image, factor = batch["image"], self.model.config.latents.factor
        rooms = torch.tensor([(length - side) // factor + 1 for length in image.shape[2:]])
        corners = (streams.uniform(2) * rooms).long().clamp(max=rooms - 1).tolist()  # (B, 2), in places

        def windows(x: Tensor, scale: int) -> Tensor:
            n = side // factor * scale
            rows = [x[i, :, y * scale : y * scale + n, u * scale : u * scale + n] for i, (y, u) in enumerate(corners)]
            return torch.stack(rows)

        cached = {"latents": windows(self.latents(batch), 1)} if "latents" in batch else {}
        return {**batch, "image": windows(image, factor), **cached}


def difference(student: ConsistencyDecoderConfig, teacher: ConsistencyDecoderConfig) -> str | None:
    """The key of what a student cannot learn from a teacher with, None where it can."""
    process, latents = {"drawn_at", "num_points"}, {"fingerprint"}
    if student.diffusion.model_dump(exclude=process) != teacher.diffusion.model_dump(exclude=process):
        return "diffusion"
    if student.latents.model_dump(exclude=latents) != teacher.latents.model_dump(exclude=latents):
        return "latents"
    ours, theirs = student.latents.fingerprint, teacher.latents.fingerprint
    return None if same_neighbour(ours, theirs) else "latents.fingerprint"
