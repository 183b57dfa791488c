"""AdamW and a learning rate that is a plain function of the optimiser step, so it is the same on any number of GPUs."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from t2i.config import Config
from t2i.errors import UsageError
from t2i.train.settings import Fraction


class OptimConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="on matrices and kernels; never on biases, gains, norms")
    warmup: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final: float = Field(0.0, ge=0, le=1, description="fraction of lr that a decay ends at")
    only: tuple[str, ...] = Field((), description="train the parameters whose names begin so, freeze the rest")


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) out of `num_steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, num_steps - config.warmup))
    fall = progress if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * progress)
    return config.lr * (1 + (config.final - 1) * fall)


def freeze(model: nn.Module, only: Sequence[str]) -> None:
    """Freezes every parameter whose name begins with none of `only`; nothing if that is empty.

    Raises UsageError for a beginning that no parameter has.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in only:
        if not any(name.startswith(start) for name in names):
            known = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
            raise UsageError(f"optim.only: no parameter begins with {start!r}; they begin with {known}")
    for name, parameter in model.named_parameters():
        if only and not name.startswith(tuple(only)):
            parameter.requires_grad_(False)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, fused where the device has it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise UsageError("the model has no trainable parameters")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
    )
