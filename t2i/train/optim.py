"""AdamW, Muon, and a learning rate that is a plain function of the optimiser step, the same on any number of GPUs."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.train.settings import Fraction


class OptimConfig(Config):
    """How weights move: AdamW, or Muon for kernels and matrices inside the network and AdamW for the rest.

    Muon asks for half the steps and less of AdamW where gradients are clean; its steps cost more, the more the wider
    the layers and the smaller the batch. Learning rates mean the same for both.
    """

    kind: Literal["adamw", "muon"] = Field("adamw", description="the optimiser")
    lr: float = Field(1e-4, gt=0, le=1e30, description="learning rate after the warm-up")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of AdamW")
    momentum: Fraction = Field(0.95, description="of Muon")
    eps: float = Field(1e-8, gt=0, le=1, description="of AdamW")
    weight_decay: float = Field(
        0.0, ge=0, le=1000, description="on matrices and kernels; never on biases, gains, norms"
    )
    warmup: int = Field(0, ge=0, le=10**9, description="optimiser steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="how the learning rate falls after the warm-up"
    )
    final: float = Field(0.0, ge=0, le=1, description="fraction of lr that a decay ends at")
    only: tuple[str, ...] = Field((), description="train the parameters whose names begin so, freeze the rest")


_WARM = 0.1  # of a decay that follows the time


def progress(config: OptimConfig, step: int, num_steps: int) -> float:
    """How far a decay is, between 0 and 1, at a step (from 0) out of `num_steps`."""
    return min(1.0, max(0, step - config.warmup) / max(1, num_steps - config.warmup))


def learning_rate(config: OptimConfig, step: int, num_steps: int, ahead: float = 0.0) -> float:
    """Learning rate of optimiser step `step` (from 0) out of `num_steps`.

    A decay that is `ahead` by the clock is at least so far, and a warm-up before it takes a tenth of its time at most.
    """
    ramp = (step + 1) / (config.warmup + 1) if step < config.warmup else 1.0
    ramp = max(ramp, min(1.0, ahead / _WARM))
    if config.schedule == "constant":
        return config.lr * ramp
    done = max(ahead, progress(config, step, num_steps))
    fall = done if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * done)
    return config.lr * ramp * (1 + (config.final - 1) * fall)


def freeze(model: nn.Module, only: Sequence[str]) -> None:
    """Freezes every parameter whose name begins with none of `only`; nothing if that is empty.

    Raises UsageError for a beginning that no parameter has.
    """
    names = [name for name, _ in model.named_parameters()]
    for start in only:
        if not any(name.startswith(start) for name in names):
            choices = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))
            raise UsageError(f"optim.only: no parameter begins with {start!r}; they begin with {choices}")
    for name, parameter in model.named_parameters():
        if only and not name.startswith(tuple(only)):
            parameter.requires_grad_(False)


_TOGETHER = 2**26  # elements that Muon stacks at once


class Muon(torch.optim.AdamW):
    """Momentum made orthogonal (Jordan et al. 2024) for the groups with `momentum`; AdamW for the others.

    A kernel (O, I, h, w) is a matrix of O rows. Updates are scaled to the root mean square of AdamW's (Liu et al. 2025,
    arXiv 2502.16982, equation 4), so one learning rate serves both.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Moves the weights; gradients of Muon's groups are gone afterwards."""
        assert closure is None
        for group in self.param_groups:
            if group["momentum"] is None:
                continue
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append((p, p.grad))
            for shape, pairs in alike.items():  # of one shape go together: a GPU would wait for each
                together = max(1, _TOGETHER // shape.numel())
                for first in range(0, len(pairs), together):
                    self._move(pairs[first : first + together], group)
        super().step()

    def _move(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """One step of parameters of one shape, with their gradients."""
        parameters, gradients = [p for p, _ in pairs], [gradient for _, gradient in pairs]
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        means = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov
        updates = orthogonal(torch.stack([update.flatten(1) for update in ahead]))  # (N, R, C)
        updates.mul_(-0.2 * max(updates.shape[1:]) ** 0.5)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        moves = [update.reshape(p.shape) for update, p in zip(updates, parameters, strict=True)]
        torch._foreach_add_(parameters, moves, alpha=group["lr"])
        for p in parameters:
            p.grad = None  # AdamW passes it by


def state_kinds(group: dict[str, Any]) -> set[str]:
    """What `make_optimizer`'s optimisers keep of a parameter of a group."""
    return {"step", "exp_avg", "exp_avg_sq"} if group["momentum"] is None else {"momentum"}


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """(…, R, C) → nearly U Vᵀ of its singular value decomposition, by a quintic Newton–Schulz iteration.

    Singular values come out between 0.7 and 1.2, of whatever size they were. What is iterated is the square matrix to
    multiply with: kernels are wide.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.mT if tall else x
    gram, identity = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x  # nothing else is as wide
    return x.mT if tall else x


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimiser of the trainable parameters, AdamW's part fused where the device has it."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UsageError("the model has no trainable parameters")
    inside = _inside(model) if config.kind == "muon" else set()
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable.items() if name in inside], "weight_decay": config.weight_decay},
        {
            "params": [p for name, p in trainable.items() if name not in inside and p.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    for group, momentum in zip(groups, (config.momentum, None, None), strict=True):
        group["momentum"] = momentum
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable.values())
    kind = Muon if config.kind == "muon" else torch.optim.AdamW
    return kind([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _inside(model: nn.Module) -> set[str]:
    """Names of what Muon moves: weights of linear layers and convolutions, save those at the network's ends, whose rows
    or columns are pixels, words or embeddings."""
    ends = ("conv_in", "conv_out", "out", "head")
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.rpartition(".")[2] not in ends
    }
