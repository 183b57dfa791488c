"""One phase of a task: the parameters that one optimiser moves, and the loss that moves them."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from t2i.core.types import Batch, Phase
from t2i.train.objective import Objective
from t2i.train.optim import OptimConfig, freeze, make_optimizer
from t2i.train.parallel import Parallel


class Learner:
    """Moves the module of a phase.

    Args:
        first: whether this is the phase that trains the task's model, whose losses keep their names and whose
            parameters `optim.only` may freeze.
    """

    def __init__(self, phase: Phase, optim: OptimConfig, parallel: Parallel, dtype: torch.dtype, first: bool) -> None:
        self.phase, self.parallel, self.prefix = phase, parallel, "" if first else f"{phase.name}/"
        freeze(phase.module, optim.only if first else ())
        self.optimizer = make_optimizer(phase.module, optim)
        self.objective = Objective(phase.module, phase.loss, dtype, parallel.device)
        self.wrapped: nn.Module = self.objective

    @property
    def files(self) -> tuple[str, str]:
        """Where a checkpoint keeps its weights and its optimiser state."""
        return (
            ("model", "optimizer") if not self.prefix else (f"phase-{self.phase.name}", f"optimizer-{self.phase.name}")
        )

    def step(
        self, batches: Iterable[Batch], num_batches: int, lr: float, max_grad_norm: float | None
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One optimiser step over micro-batches; waits for no device.

        Returns the means of every micro-batch by name, and whether loss and gradients were finite, a bool tensor.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.phase.lr
        found, loss = [], torch.zeros(())
        for number, batch in enumerate(batches, 1):
            with nullcontext() if number == num_batches else self.parallel.no_sync(self.wrapped):
                loss, means = self.wrapped(batch)
                (loss / num_batches).backward()
            found.append({self.prefix + name: value for name, value in means.items()})
        norm = self.parallel.clip(self.phase.module.parameters(), max_grad_norm)
        found.append({f"{self.prefix}grad_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return found, norm.isfinite() & loss.isfinite()
