"""How to train: the settings of the loop, and the little that depends on the machine."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from t2i.core.config import AtHome, Config, renamed
from t2i.core.devices import fast_bfloat16

Fraction = Annotated[float, Field(ge=0, lt=1)]


Tracker = Literal["tensorboard", "wandb", "trackio"]


class EvalConfig(Config):
    """Measures of drawn pictures, while a stage that draws pictures is trained."""

    every: int = Field(1000, ge=1, le=10**9, description="steps from one evaluation to the next; also at the end")
    metrics: tuple[str, ...] = Field(
        ("frechet", "kid", "diversity"), min_length=1, description="of t2i eval pictures, against held-out pictures"
    )
    num: int = Field(512, ge=2, le=10**6, description="pictures that are drawn, over all processes")
    extractor: str = Field("clip", description="what sees the pictures, as in t2i eval pictures")
    batch_size: int = Field(32, ge=1, le=10**5, description="pictures that each process draws at once")


class TrainConfig(Config):
    """How to train. Steps are optimiser steps; images are counted over all processes."""

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return renamed(data, clip="max_grad_norm")

    steps: int = Field(ge=1, le=10**9, description="optimiser steps of the whole run")
    batch_size: int = Field(ge=1, le=10**6, description="images per step, over all processes and micro-batches")
    accumulate: int = Field(
        1, ge=1, le=10**6, description="micro-batches per step; CLIP compares within one micro-batch only"
    )
    out: Annotated[Path, AtHome] = Field(
        description="folder of the run: the exported stage, metrics, samples, checkpoints"
    )
    resume: Annotated[str, AtHome] = Field("auto", description="auto, none, or the path of a checkpoint")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="of weights, data, noise and dropout")
    ema: tuple[Fraction, ...] = Field((0.999,), description="decays; the first is exported and sampled")
    max_grad_norm: float | None = Field(1.0, gt=0, description="larger gradients are scaled down to it; null for none")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the steps; weights stay float32. auto: bf16 where the machine is fast at it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    max_minutes: float | None = Field(
        None, gt=0, le=10**7, description="of one call: save and end within it, any decay with it"
    )
    log_every: int = Field(20, ge=1, le=10**9, description="steps from one row of metrics.jsonl to the next")
    save_every: int = Field(500, ge=1, le=10**9, description="steps from one checkpoint to the next")
    keep: int = Field(2, ge=1, le=10**6, description="checkpoints that stay")
    sample_every: int | None = Field(
        None, ge=0, le=10**9, description="None for steps 0, 100, 300, 1000, 3000 …; 0 for never"
    )
    num_samples: int = Field(16, ge=1, le=10_000, description="pictures in a sample grid and in a held-out batch")
    prompts: tuple[str, ...] = Field((), description="sentences of your own that every grid shows, where a stage reads")
    val_every: int = Field(
        500, ge=0, le=10**9, description="held-out loss and metrics every so many steps; 0 for never"
    )
    val_batches: int = Field(4, ge=1, le=10**6, description="held-out batches that are measured")
    eval: EvalConfig | None = Field(None, description="measures of drawn pictures now and then; null for none")
    trackers: tuple[Tracker, ...] = Field(
        (), description="where rows of metrics.jsonl go as well: tensorboard, wandb, trackio"
    )
    num_threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of each process")


def is_sample_step(step: int, every: int | None) -> bool:
    """Whether a grid is drawn after `step` steps: on a logarithmic scale, or every so many steps."""
    if every is None:
        digits = str(step)
        return step == 0 or (step >= 100 and digits[0] in "13" and not digits[1:].strip("0"))
    return every > 0 and step % every == 0


def num_times(step: int, steps: int, every: int | None) -> int:
    """How often after `step` steps something is done that is done every so many steps and at the end; None for the
    logarithmic scale of grids, 0 for never."""
    if every == 0 or step >= steps:
        return 0
    if every is None:
        scale = (digit * 10**zeros for zeros in range(2, len(str(steps))) for digit in (1, 3))
        return sum(step < at < steps for at in scale) + 1
    return steps // every - step // every + (steps % every > 0)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 autocast where asked for, or where `auto` finds hardware for it; float32 otherwise."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32
