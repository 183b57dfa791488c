"""The training loop, written once for every stage.

A task gives per-sample losses; the loop averages them, steps, averages weights, logs, samples, saves and resumes. Order
of samples, noise and dropout are functions of (seed, position), so a killed run continues exactly where it was saved.

Legend: B global batch · b micro-batch of one process.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.devices import memory_explained
from t2i.core.errors import NonFiniteError, Stopped, UsageError
from t2i.core.progress import Alive, to_stderr
from t2i.core.seed import mix
from t2i.core.types import Batch, Task
from t2i.data.loader import loaders_explained
from t2i.io.files import writable, write
from t2i.io.images import to_pil
from t2i.io.lock import remove_temporaries, sole_writer
from t2i.train import checkpoint
from t2i.train.ema import Ema
from t2i.train.evaluation import Evaluation, Judge
from t2i.train.grids import Section, save_sheet
from t2i.train.held_out import HeldOut, said_of
from t2i.train.learner import Learner
from t2i.train.limit import TimeLimit, num_bytes
from t2i.train.loaders import Loaders
from t2i.train.log import announce
from t2i.train.looks import Due, Looks
from t2i.train.objective import Batches, LoaderFactory, to_device
from t2i.train.optim import OptimConfig, learning_rate
from t2i.train.parallel import Parallel
from t2i.train.report import Report
from t2i.train.settings import TrainConfig, choose_dtype
from t2i.train.snapshot import Earlier, Snapshot, changes
from t2i.train.stop import Interrupted, StopRequest
from t2i.train.tracking import Tracking

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


def fit(
    task: Task,
    loader: LoaderFactory,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    export: Export,
    resolved: dict[str, Any] | None = None,
    earlier: Earlier | None = None,
    began: float | None = None,
    judge: Judge | None = None,
) -> Result:
    """Train `task.model` and leave in `config.out` an exported stage, metrics, samples and checkpoints.

    Args:
        task: where it has a module `memory`, the buffers of that are saved and restored beside the model.
        resolved: the whole configuration of the run as JSON-able values, kept in `run.json` and in every checkpoint.
        earlier: how checkpoints of earlier versions are read.
        began: when `config.max_minutes` began, by `time.perf_counter`; now, if it is not given.
        judge: measures what is drawn, where `config.eval` asks for it.

    Raises:
        UsageError: `out` cannot be written, another process trains there, or the batch does not divide over processes.
        NonFiniteError: NaN or infinity in a loss, gradient or weight; nothing of that step is saved.
        OutOfMemoryError: a step needs more memory than there is.
        Stopped: a signal asked for it and the state was saved.
        DataError: unusable data, damaged checkpoints, or a full disk.
    """
    began = time.perf_counter() if began is None else began
    to_stderr()
    folder, parallel = writable(config.out), Parallel(config.device)
    with StopRequest() as stop, loaders_explained(), ExitStack() as stack:

        def hold() -> None:
            if stack.enter_context(sole_writer(folder, "trained", "stop it or choose another train.out")):
                for below in ("samples", "checkpoints"):
                    remove_temporaries(folder / below)
                checkpoint.tidy(folder / "checkpoints")

        parallel.on_main(hold)
        with Alive("preparing"):  # reading a checkpoint may take minutes
            run = _Run(task, loader, config, optim, export, resolved or {}, earlier or Earlier(), parallel, stop, began)
            run.judged_by(judge)
        try:
            return run.train()
        finally:
            run.tracking.end()


class _Run:
    """One call of `fit`."""

    def __init__(
        self, task: Task, loader: LoaderFactory, config: TrainConfig, optim: OptimConfig,
        export: Export, resolved: dict[str, Any], earlier: Earlier, parallel: Parallel, stop: StopRequest, began: float,
    ) -> None:  # fmt: skip
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.task, self.config, self.optim = task, config, optim
        self.loaders = Loaders(loader, config, parallel, stop)
        self.export, self.resolved, self.parallel, self.stop = export, resolved, parallel, stop
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
        self.snapshot = Snapshot(task, self.learners, self.ema, parallel)
        self.changed: dict[str, str] = {}
        self.step, self.images, minutes, seconds = self._resume(earlier)
        self.saved = self.step
        for learner in self.learners:
            learner.wrapped = self.parallel.wrap(learner.objective)
        self.tracking = Tracking(parallel, config.trackers, config.out, self.resolved, self.step)
        self.report = Report(self.parallel, config, self.step, minutes, began, self.tracking)
        size = num_bytes(self.model, config)
        self.limit = TimeLimit(config, optim, size, seconds, self.report.forecast, began, parallel.world)
        self.ahead = 0.0  # of the decay, by the clock
        objective, loaders = self.learners[0].objective, self.loaders
        self.held_out = HeldOut(task, objective, self.ema, self.device, loaders.one, loaders.held_out, config.prompts)

    def judged_by(self, judge: Judge | None) -> None:
        """Who measures what is drawn."""
        parts, asked, evaluation = (self.held_out, self.loaders, self.parallel), self.config.eval, None
        if asked is not None and judge is not None:
            evaluation = Evaluation(asked, judge, *parts)
        self.looks = Looks(self.config, self.held_out, evaluation, self.report, self.limit, self.parallel)

    def train(self) -> Result:
        """Step until the end, a signal or the time limit."""
        try:
            with self.report.alive:
                return self._finished() if self.step >= self.config.steps else self._open_and_train()
        except Interrupted:  # while it waited for data, so between two steps
            if self.step > self.saved:
                self._save()
            raise self._stopped(str(self.stop.name)) from None

    def _finished(self) -> Result:
        if any(key.startswith("data.") for key in self.changed):
            self.loaders.open("train", self.config.batch_size)  # complains of data that are not there
        log.info("already at step %d of %d: %s", self.step, self.config.steps, self.config.out)
        self._export()  # the last one may have been cut off
        missed = self.looks.missed(self.step, last=True)
        if any(missed) and (problem := self.parallel.on_main(self.held_out.problem)) is not None:
            log.warning("a grid or held-out numbers are missing, and so are their data: %s", problem)
        else:
            self.looks.look(self.step, self.images, missed)
        return Result(self.step, self.images, "done", {})

    def _open_and_train(self) -> Result:
        config = self.config
        data = self.loaders.open("train", config.batch_size, start=self.images)
        with closing(iter(data)) as stream:
            batches = self._announce(stream)
            if self.main:
                write(config.out / "run.json", json.dumps(self.resolved, indent=2, default=str).encode())
            return self._train(data, batches)

    def _train(self, data: Batches, batches: Iterator[Batch]) -> Result:
        config = self.config
        if self.step == 0:
            self.looks.look(0, 0, Due(self.looks.due(0, last=False).sample))
        else:
            self.looks.look(self.step, self.images, self.looks.missed(self.step, last=False))
        self.looks.prepare()
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
                    with self.limit.timing("save"):
                        self._save()
                if last or not asked:
                    self.looks.look(self.step, self.images, self.looks.due(self.step, last))
            if last:
                reason = asked or "done"
                break
            if asked:
                raise self._stopped(asked)
        log.info("%s at step %d: %s", reason, self.step, config.out)
        return Result(self.step, self.images, reason, self.report.row)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One step of every phase over the same `accumulate` micro-batches; waits for no device."""
        config = self.config
        with self.loaders.waiting():
            here = [next(batches) for _ in range(config.accumulate)]
        micro: Any = (to_device(batch, self.device) for batch in here)
        if len(self.learners) > 1:
            micro = list(micro)
        self.lr = learning_rate(self.optim, self.step, config.steps, self.ahead)
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

    def _stopped(self, why: str) -> Stopped:
        done = f"saved step {self.step} in {self.config.out}" if self.step else "before the first step"
        return Stopped(f"{why}: {done}; the same command continues from there")

    def _asked_to_stop(self) -> str | None:
        """The signal's name or `max_minutes`, agreed between all processes (which look every fifth step)."""
        if self.parallel.world > 1 and self.step % 5:
            return None
        late = self.limit.late(self.step, *self.looks.due(self.step, last=False))
        self.ahead = self.limit.ahead()
        if self.parallel.world == 1:
            return self.stop.name or ("max_minutes" if late else None)
        flags = [float(late), float(self.stop.name is not None), self.ahead if self.main else 0.0]
        any_late, any_signal, self.ahead = self.parallel.reduce(torch.tensor(flags, device=self.device), "sum").tolist()
        return (self.stop.name or "signal") if any_signal else "max_minutes" if any_late else None

    def _save(self) -> None:
        """Checkpoint, then export."""
        self.report.check_finite(self.step, self.lr)
        tensors, folder = self.snapshot.tensors(), self.config.out / "checkpoints"
        if bad := checkpoint.non_finite(tensors):
            raise NonFiniteError(
                f"{' and '.join(bad)} became NaN or infinite by step {self.step} (learning rate {self.lr:.2g}), "
                f"which is not saved: {checkpoint.last_good(folder)}"
            )
        numbers: dict[str, Any] = {"step": self.step, "images": self.images, "minutes": self.report.minutes}
        numbers |= {"config": self.resolved, "seconds": self.limit.seconds}
        self.parallel.on_main(lambda: checkpoint.save(folder, self.step, tensors, numbers, self.config.keep))
        self.saved = self.step
        self._export()

    def _export(self) -> None:
        """Write the averaged stage; the first process writes, all wait."""

        def export() -> None:
            with self.ema.swapped():
                self.export(self.config.out, {k: v.detach().cpu() for k, v in self.model.state_dict().items()})

        self.parallel.on_main(export)

    def _resume(self, earlier: Earlier) -> tuple[int, int, float, dict[str, float]]:
        """Step, images, minutes and seconds that a checkpoint had, after everything in it is put back."""
        path = self.parallel.on_main(lambda: checkpoint.find(self.config.out / "checkpoints", self.config.resume))
        if path is None:
            return 0, 0, 0.0, {}
        state = self.snapshot.restore(path, earlier)
        self.changed = changes(earlier.config(state["config"]), self.resolved)
        changed = [f"{key}: {how}" for key, how in self.changed.items()]
        log.info("resumed %s at step %d%s", path, state["step"], f" with {', '.join(changed)}" if changed else "")
        return state["step"], state["images"], state["minutes"], state.get("seconds", {})

    def _announce(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Say what the network is about to see, and refuse data that lacks what the task needs."""
        with self.loaders.waiting():
            first = next(batches)
        if missing := [key for key in self.task.keys if key not in first]:
            raise UsageError(f"the task needs {missing}, the data has {sorted(first)}")
        if self.main:
            size, accumulate, world = self.config.batch_size, self.config.accumulate, self.parallel.world
            micro = size // (accumulate * world)
            log.info("batch %d = %d × accumulate %d × processes %d", size, micro, accumulate, world)
            announce(self.task, first, self.device, self.dtype, self.config.prompts)
            if "image" in first:
                rows = [[picture] for picture in to_pil(first["image"][:16])]
                shown = Section("what the network is trained on", rows, said_of(self.task, first)[:16])
                save_sheet([shown], self.config.out / "samples" / "inputs.png")
        return itertools.chain([first], batches)
