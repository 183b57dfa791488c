"""What a checkpoint holds of a run: taken from its learners, averages and memory, and put back into them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.core.config import flatten
from t2i.core.types import Task
from t2i.train import checkpoint
from t2i.train.ema import Ema
from t2i.train.learner import Learner
from t2i.train.parallel import Parallel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """Checkpoints of earlier versions in the form of today: the name of a tensor, and the configuration of a run."""

    name: Callable[[str], str] = str
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class Snapshot:
    """What of a run is saved beside its numbers."""

    task: Task
    learners: Sequence[Learner]
    ema: Ema
    parallel: Parallel

    def tensors(self) -> checkpoint.State:
        """Everything that a resume needs, by file; all processes must ask."""
        found: checkpoint.State = {}
        for learner in self.learners:
            state = self.parallel.state(learner.phase.module, learner.optimizer)
            found |= dict(zip(learner.files, state, strict=True))
        found |= {f"ema-{decay}": self.ema.named(index) for index, decay in enumerate(self.ema.decays)}
        if self.task.memory is not None:
            found["memory"] = self.task.memory.state_dict()
        return found

    def restore(self, path: Path, earlier: Earlier) -> dict[str, Any]:
        """Put back what a checkpoint has; its numbers."""
        tensors, numbers = checkpoint.load(path, earlier.name)
        for learner in self.learners:
            weights, moments = (tensors.get(name, {}) for name in learner.files)
            self.parallel.load(learner.phase.module, learner.optimizer, (weights, moments), path)
        for index, decay in enumerate(self.ema.decays):
            if f"ema-{decay}" not in tensors:
                log.warning("%s has no average of decay %s: starting it from the weights", path, decay)
            self.ema.load(index, tensors.get(f"ema-{decay}", {}))
        memory = self.task.memory
        if memory is not None and "memory" in tensors:
            checkpoint.load_model(memory, tensors["memory"], path)
        elif memory is not None:
            log.warning("%s has no memory: starting it anew", path)
            self.task.renew()
        return numbers


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two configurations, as `before → now` by key."""
    old, new = dict(flatten(before)), dict(flatten(now))
    return {key: f"{old.get(key)} → {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)}
