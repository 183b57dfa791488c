"""How to train: the settings of the loop, and the little that depends on the machine."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from t2i.core.config import AtHome, Config, renamed
from t2i.core.devices import fast_bfloat16

Fraction = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """How to train. Steps are optimiser steps; images are counted over all processes."""

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(data, clip="max_grad_norm")

    steps: int = Field(ge=1, le=10**9)
    batch_size: int = Field(ge=1, le=10**6, description="images per step, over all processes and micro-batches")
    accumulate: int = Field(
        1, ge=1, le=10**6, description="micro-batches per step; CLIP compares within one micro-batch only"
    )
    out: Annotated[Path, AtHome] = Field(
        description="folder of the run: the exported stage, metrics, samples, checkpoints"
    )
    resume: Annotated[str, AtHome] = Field("auto", description="auto, none, or the path of a checkpoint")
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    ema: tuple[Fraction, ...] = Field((0.999,), description="decays; the first is exported and sampled")
    max_grad_norm: float | None = Field(1.0, gt=0, description="larger gradients are scaled down to it; null for none")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_minutes: float | None = Field(None, gt=0, le=10**7, description="save and end after this long")
    log_every: int = Field(20, ge=1, le=10**9)
    save_every: int = Field(500, ge=1, le=10**9)
    keep: int = Field(2, ge=1, le=10**6, description="checkpoints that stay")
    sample_every: int | None = Field(
        None, ge=0, le=10**9, description="None for steps 0, 100, 300, 1000, 3000 …; 0 for never"
    )
    num_samples: int = Field(16, ge=1, le=10_000, description="pictures in a sample grid and in a held-out batch")
    val_every: int = Field(0, ge=0, le=10**9, description="held-out loss and metrics every so many steps; 0 for never")
    val_batches: int = Field(4, ge=1, le=10**6)
    num_threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of each process")


def is_sample_step(step: int, every: int | None) -> bool:
    """Whether a grid is drawn after `step` steps: on a logarithmic scale, or every so many steps."""
    if every is None:
        digits = str(step)
        return step == 0 or (step >= 100 and digits[0] in "13" and not digits[1:].strip("0"))
    return every > 0 and step % every == 0


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 autocast where asked for, or where `auto` finds hardware for it; float32 otherwise."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32
