"""`t2i calibrate`: measures the analytic variances of a trained prior (Bao et al. 2022, see `t2i.diffusion.analytic`).

B pictures · T steps of the training process
"""

from pathlib import Path

import torch

from t2i.core.errors import DataError, UsageError
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.diffusion import analytic
from t2i.diffusion.sampling import Sampling
from t2i.evals.batches import pictures
from t2i.io.files import output_folder
from t2i.io.lock import sole_writer
from t2i.io.weights import save_folder, stored_folder
from t2i.pipeline.loading import pipeline_class
from t2i.stages.prior.task import PriorOptions, PriorTask
from t2i.stages.registry import find_stage

_BATCH = 64
_DATA_VARIANCE = 1.0  # of standardised embeddings


def calibrate(
    prior: str,
    clip: str,
    out: str | Path,
    *,
    data: str = "shapes",
    num: int = 256,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Write a prior with analytic variances, otherwise the same to the bit; its own folder may be `out`.

    They are those of the conditional network without guidance. Guidance moves the mean, which no variance makes up for,
    so guided sampling uses the same ones.

    Args:
        prior, clip: stage folders that belong together.
        data: shapes, a folder or shards; captioned pictures of it that training sees.
        num: pictures, at most; each is noised once for every step of the process.
        seed: order of the pictures, and their noise.

    Returns how many pictures there were. Raises UsageError and DataError for what cannot be opened, does not belong
    together, or cannot be written.
    """
    with output_folder(out) as folder, sole_writer(folder):
        pipe = pipeline_class("dalle2").assemble({"clip": clip, "prior": prior}, {"steps": {"prior": 1}})
        pipe.to(device, "float32")
        encoder, model = pipe.parts["clip"], pipe.parts["prior"]
        if pipe.planner.stages["prior"].name != "prior":
            raise UsageError(f"{prior}: only diffusion priors have variances, this is a {type(model).__name__}")
        if not model.calibrated:
            raise DataError(f"{prior}: this prior has no CLIP statistics (mean and std are NaN)")
        config = DataConfig(source=data, size=encoder.image_size, num_workers=0)
        loader = Loader(config, seed=seed, batch_size=min(_BATCH, num))
        batches = pictures(loader, num, pipe.device)
        task = PriorTask(model, PriorOptions(sampling=Sampling(steps=1)), clip=encoder)
        errors = torch.cat([task.squared_errors(batch, task.process) for batch in batches])  # (B, T)
        stored, state = stored_folder(find_stage(prior))
        diffusion = model.config.diffusion.model_copy(update={"variance": "analytic"})
        stored["model"] = model.config.model_copy(update={"diffusion": diffusion}).model_dump(mode="json")
        state["x_0_variance"] = analytic.measured(errors, _DATA_VARIANCE)
        save_folder(out, stored, state)
    return len(errors)
