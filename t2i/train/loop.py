"""The training loop, written once for every stage.

A task gives per-sample losses; the loop averages them, steps, averages weights, logs, samples, saves and resumes. Order
of samples, noise and dropout are functions of (seed, position), so a killed run continues exactly where it was saved.

Legend: B global batch · b micro-batch of one process.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.config import flatten
from t2i.core.devices import memory_explained
from t2i.core.errors import Stopped, UsageError
from t2i.core.progress import to_stderr
from t2i.core.seed import mix
from t2i.core.types import Batch, Task
from t2i.data.loader import NothingHeldOutError
from t2i.io.files import writable, write
from t2i.io.images import to_pil
from t2i.train import checkpoint
from t2i.train.ema import Ema
from t2i.train.grids import Section, save_sheet
from t2i.train.held_out import HeldOut, said_of
from t2i.train.learner import Learner
from t2i.train.log import announce
from t2i.train.objective import Batches, LoaderFactory, to_device
from t2i.train.optim import OptimConfig, learning_rate
from t2i.train.parallel import Parallel
from t2i.train.report import Report
from t2i.train.settings import TrainConfig, choose_dtype, is_sample_step
from t2i.train.stop import StopRequest

log = logging.getLogger(__name__)

LESS_MEMORY = "a larger train.accumulate, model.unet.checkpointing=true, or train.precision=bf16"
Export = Callable[[Path, dict[str, Tensor]], None]
"""`export(folder, state)` writes the stage so that it loads for inference; `state` is the averaged weights."""


@dataclass(frozen=True)
class Result:
    """How a run ended: `reason` is `done` or `max_minutes`; `metrics` is the last report of losses."""

    step: int
    images: int
    reason: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Earlier:
    """Checkpoints of earlier versions in the form of today: the name of a tensor, and the configuration of a run."""

    name: Callable[[str], str] = str
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict


def fit(
    task: Task,
    loader: LoaderFactory,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    export: Export,
    resolved: dict[str, Any] | None = None,
    earlier: Earlier | None = None,
) -> Result:
    """Train `task.model` and leave in `config.out` an exported stage, metrics, samples and checkpoints.

    Args:
        task: where it has a module `memory`, the buffers of that are saved and restored beside the model.
        resolved: the whole configuration of the run as JSON-able values, kept in `run.json` and in every checkpoint.
        earlier: how checkpoints of earlier versions are read.

    Raises:
        UsageError: `out` cannot be written, or the batch does not divide over the processes.
        NonFiniteError: NaN or infinity in a loss or gradient; nothing of that step is saved.
        OutOfMemoryError: a step needs more memory than there is.
        Stopped: a signal asked for it and the state was saved.
        DataError: unusable data, damaged checkpoints, or a full disk.
    """
    to_stderr()
    with StopRequest() as stop:
        return _Run(task, loader, config, optim, export, resolved or {}, earlier or Earlier(), stop).train()


class _Run:
    """One call of `fit`."""

    def __init__(
        self, task: Task, loader: LoaderFactory, config: TrainConfig, optim: OptimConfig,
        export: Export, resolved: dict[str, Any], earlier: Earlier, stop: StopRequest,
    ) -> None:  # fmt: skip
        writable(config.out)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.task, self.make_loader, self.config, self.optim = task, loader, config, optim
        self.export, self.resolved, self.earlier, self.stop = export, resolved, earlier, stop
        self.parallel = Parallel(config.device)
        self.device, self.main = self.parallel.device, self.parallel.main
        task.to(self.device)  # frozen neighbours and tables beside the model
        self.model: nn.Module = task.model.to(self.device, memory_format=torch.channels_last)
        self.dtype, self.lr = choose_dtype(config.precision, self.device), optim.lr
        names = [phase.name for phase in task.phases()]
        if len({*names}) < len(names) or not all(name.isidentifier() for name in names):
            raise UsageError(f"phases have different names of letters, digits and underscores, got {names}")
        self.learners = [
            Learner(phase, optim, self.parallel, self.dtype, first=number == 0)
            for number, phase in enumerate(task.phases())
        ]
        self.ema = Ema(self.model, config.ema)
        self.step, self.images, minutes = self._resume()
        for learner in self.learners:
            learner.wrapped = self.parallel.wrap(learner.objective)
        self.report = Report(self.parallel, config, self.step, minutes)
        objective = self.learners[0].objective
        self.held_out = HeldOut(
            task, objective, self.ema, self.device, self._one_held_out, self._held_out, config.prompts
        )

    def train(self) -> Result:
        """Step until the end, a signal or the time limit."""
        config = self.config
        if self.step >= config.steps:
            log.info("already at step %d of %d: %s", self.step, config.steps, config.out)
            self._export()  # the last one may have been cut off
            return Result(self.step, self.images, "done", {})
        data = self._loader("train", config.batch_size)
        with self.report.alive, closing(iter(data)) as stream:
            batches = self._announce(stream)
            if self.main:
                write(config.out / "run.json", json.dumps(self.resolved, indent=2, default=str).encode())
            return self._train(data, batches)

    def _train(self, data: Batches, batches: Iterator[Batch]) -> Result:
        config = self.config
        if self.step == 0:
            self._look(sample=True, measure=False)
        self.model.train()
        self.report.clock.start(data.seconds_waited)
        self.report.forecast.start()
        reason = "done"
        while self.step < config.steps:
            with memory_explained("a training step", LESS_MEMORY):
                self._step(batches)
            asked = None if self.step == config.steps else self._asked_to_stop()
            last = self.step == config.steps or asked == "max_minutes"
            if last or self.step % config.log_every == 0:
                self.report.write(self.step, self.images, data.seconds_waited, self.lr)
            self.report.tell(self.step, self.images, data.seconds_waited, self.lr)
            with self.report.clock.aside():
                if asked or last or self.step % config.save_every == 0:
                    with self.report.forecast.measured("save"):
                        self._save()
                if last or not asked:
                    self._look(
                        sample=last or is_sample_step(self.step, config.sample_every),
                        measure=config.val_every > 0 and (last or self.step % config.val_every == 0),
                    )
            if last:
                reason = asked or "done"
                break
            if asked:
                raise Stopped(f"{asked}: saved step {self.step} in {config.out}; the same command continues from there")
        log.info("%s at step %d: %s", reason, self.step, config.out)
        return Result(self.step, self.images, reason, self.report.row)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One step of every phase over the same `accumulate` micro-batches; waits for no device."""
        config = self.config
        micro: Any = (to_device(next(batches), self.device) for _ in range(config.accumulate))
        if len(self.learners) > 1:
            micro = list(micro)
        self.lr = learning_rate(self.optim, self.step, config.steps)
        for learner in self.learners:
            phase = [learner.phase.name] if learner.prefix else []
            torch.manual_seed(mix(config.seed, "dropout", self.images, self.parallel.rank, *phase))
            means, finite = learner.step(micro, config.accumulate, self.lr, config.max_grad_norm)
            self.report.add(self.step, means, finite)
            for other in self.learners:
                other.optimizer.zero_grad(set_to_none=True)  # what this phase's loss left in theirs
        self.ema.update(self.step)
        self.step += 1
        self.images += config.batch_size
        self.task.after_step(self.step)

    def _asked_to_stop(self) -> str | None:
        """The signal's name or `max_minutes`, agreed between all processes (which look every fifth step)."""
        late = self.config.max_minutes is not None and self.report.clock.minutes() > self.config.max_minutes
        name = self.stop.name or ("max_minutes" if late else None)
        if self.parallel.world == 1 or self.step % 5:
            return name if self.parallel.world == 1 else None
        flags = torch.tensor([float(late), float(self.stop.name is not None)], device=self.device)
        any_late, any_signal = self.parallel.reduce(flags, "sum").tolist()
        return (self.stop.name or "signal") if any_signal else "max_minutes" if any_late else None

    def _save(self) -> None:
        """Checkpoint, then export."""
        self.report.check_finite(self.step, self.lr)
        tensors: checkpoint.State = {}
        for learner in self.learners:
            state = self.parallel.state(learner.phase.module, learner.optimizer)
            tensors |= dict(zip(learner.files, state, strict=True))
        tensors |= {f"ema-{decay}": self.ema.named(index) for index, decay in enumerate(self.ema.decays)}
        if self.task.memory is not None:
            tensors["memory"] = self.task.memory.state_dict()
        if self.main:
            numbers = {
                "step": self.step,
                "images": self.images,
                "minutes": self.report.minutes,
                "config": self.resolved,
            }
            checkpoint.save(self.config.out / "checkpoints", self.step, tensors, numbers, self.config.keep)
        self._export()

    def _export(self) -> None:
        """Write the averaged stage; the first process writes, all wait."""
        if self.main:
            with self.ema.swapped():
                self.export(self.config.out, {k: v.detach().cpu() for k, v in self.model.state_dict().items()})
        self.parallel.barrier()

    def _resume(self) -> tuple[int, int, float]:
        """Step, images and minutes that a checkpoint had, after everything in it is put back."""
        found = checkpoint.find(self.config.out / "checkpoints", self.config.resume) if self.main else None
        path = self.parallel.broadcast(found)
        if path is None:
            return 0, 0, 0.0
        tensors, state = checkpoint.load(path, self.earlier.name)
        for learner in self.learners:
            weights, moments = (tensors.get(name, {}) for name in learner.files)
            self.parallel.load(learner.phase.module, learner.optimizer, (weights, moments), path)
        for index, decay in enumerate(self.ema.decays):
            if f"ema-{decay}" not in tensors:
                log.warning("%s has no average of decay %s: starting it from the weights", path, decay)
            self.ema.load(index, tensors.get(f"ema-{decay}", {}))
        if self.task.memory is not None and "memory" in tensors:
            checkpoint.load_model(self.task.memory, tensors["memory"], path)
        elif self.task.memory is not None:
            log.warning("%s has no memory of losses: starting it empty", path)
        before, now = dict(flatten(self.earlier.config(state["config"]))), dict(flatten(self.resolved))
        changes = [f"{k}: {before.get(k)} → {now.get(k)}" for k in {**before, **now} if before.get(k) != now.get(k)]
        log.info("resumed %s at step %d%s", path, state["step"], f" with {', '.join(changes)}" if changes else "")
        return state["step"], state["images"], state["minutes"]

    def _announce(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Say what the network is about to see, and refuse data that lacks what the task needs."""
        first = next(batches)
        if missing := [key for key in self.task.keys if key not in first]:
            raise UsageError(f"the task needs {missing}, the data has {sorted(first)}")
        if self.main:
            size, accumulate = self.config.batch_size, self.config.accumulate
            log.info(
                "batch %d = %d × accumulate %d × processes %d",
                size,
                size // (accumulate * self.parallel.world),
                accumulate,
                self.parallel.world,
            )
            announce(self.task, first, self.device, self.dtype, self.config.prompts)
            if "image" in first:
                rows = [[picture] for picture in to_pil(first["image"][:16])]
                shown = Section("what the network is trained on", rows, said_of(self.task, first)[:16])
                save_sheet([shown], self.config.out / "samples" / "inputs.png")
        return itertools.chain([first], batches)

    def _look(self, sample: bool, measure: bool) -> None:
        """Sample grid (first process) and held-out numbers (all processes)."""
        if sample and self.main and self.config.sample_every != 0 and self.held_out.draws:
            with self.report.forecast.measured("grid"):
                self.held_out.sample(self.config.out / "samples" / f"step-{self.step:06d}.png", f"step {self.step}")
        if measure:
            with self.report.forecast.measured("evaluation"):
                names, values = self.held_out.measure()
            if names:
                self.report.write_held_out(self.step, self.images, names, values)
        if sample or measure:
            self.parallel.barrier()

    def _one_held_out(self) -> Batch:
        """What grids show: held-out samples, or where there are none, others."""
        alone = {"rank": 0, "world": 1, "accumulate": 1}
        try:
            return next(iter(self._loader("val", self.config.num_samples, **alone)))
        except NothingHeldOutError:
            return next(iter(self._loader("train", self.config.num_samples, start=0, **alone)))

    def _held_out(self) -> list[Batch]:
        count = self.config.val_batches * self.config.accumulate
        try:
            return list(itertools.islice(self._loader("val", self.config.batch_size), count))
        except NothingHeldOutError as error:
            log.warning("no held-out numbers: %s", error)
            return []

    def _loader(self, split: str, batch_size: int, **changes: int) -> Batches:
        here = {"rank": self.parallel.rank, "world": self.parallel.world, "accumulate": self.config.accumulate}
        here["start"] = self.images if split == "train" else 0
        bad_log = self.config.out / "bad.jsonl"
        seed = self.config.seed
        return self.make_loader(seed=seed, batch_size=batch_size, split=split, bad_log=bad_log, **(here | changes))
