"""The training loop, written once for every stage.

A task gives per-sample losses; the loop averages them, steps, averages weights, logs, samples, saves and resumes. Order
of samples, noise and dropout are functions of (seed, position), so a killed run continues exactly where it was saved.

Legend: B global batch · b micro-batch of one process.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from t2i.core.config import flatten
from t2i.core.devices import memory_explained
from t2i.core.errors import NonFiniteError, Stopped, UsageError
from t2i.core.seed import mix
from t2i.core.types import Batch, Task
from t2i.data.loader import NothingHeldOutError
from t2i.io import files
from t2i.io.images import grid, save_png
from t2i.train import checkpoint
from t2i.train.ema import Ema
from t2i.train.held_out import HeldOut
from t2i.train.log import Clock, Meter, MetricsFile, announce, memory_gb, status_line, to_stderr
from t2i.train.objective import Batches, LoaderFactory, Objective, to_device
from t2i.train.optim import OptimConfig, freeze, learning_rate, make_optimizer
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


def fit(
    task: Task,
    loader: LoaderFactory,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    export: Export,
    resolved: dict[str, Any] | None = None,
) -> Result:
    """Train `task.model` and leave in `config.out` an exported stage, metrics, samples and checkpoints.

    Args:
        task: where it has a module `memory`, the buffers of that are saved and restored beside the model.
        resolved: the whole configuration of the run as JSON-able values, kept in `run.json` and in every checkpoint.

    Raises:
        UsageError: `out` cannot be written, or the batch does not divide over the processes.
        NonFiniteError: NaN or infinity in a loss or gradient; nothing of that step is saved.
        Stopped: a signal asked for it and the state was saved.
        DataError: unusable data, damaged checkpoints, or a full disk.
    """
    to_stderr()
    with StopRequest() as stop:
        return _Run(task, loader, config, optim, export, resolved or {}, stop).train()


class _Run:
    """One call of `fit`."""

    def __init__(
        self, task: Task, loader: LoaderFactory, config: TrainConfig, optim: OptimConfig,
        export: Export, resolved: dict[str, Any], stop: StopRequest,
    ) -> None:  # fmt: skip
        files.writable(config.out)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.task, self.make_loader, self.config, self.optim = task, loader, config, optim
        self.export, self.resolved, self.stop = export, resolved, stop
        cpu = config.device == "cpu" or not torch.accelerator.is_available()  # said aloud, or launchers fall apart
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        if config.device == "cuda" and self.device.type != "cuda":
            raise UsageError("device: cuda, but torch finds no GPU")
        if isinstance(task, nn.Module):
            task.to(self.device)  # frozen encoders and tables beside the model
        self.memory: nn.Module | None = getattr(task, "memory", None)
        if self.memory is not None:
            self.memory.to(self.device)
        self.model = task.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = choose_dtype(config.precision, self.device)
        self.objective = Objective(task, self.dtype, self.device)
        freeze(self.model, optim.only)
        self.optimizer = make_optimizer(self.model, optim)
        self.ema = Ema(self.model, config.ema)
        self.step, self.images, self.minutes = 0, 0, 0.0
        self._resume()
        self.start_step = self.step
        self.wrapped = self.accelerator.prepare_model(self.objective)
        self.metrics = MetricsFile(config.out / "metrics.jsonl", self.step) if self.main else None
        self.meter, self.clock = Meter(), Clock()
        self.first_bad = torch.full((), -1, device=self.device, dtype=torch.int64)
        self.last_row: dict[str, Any] = {}
        self.held_out = HeldOut(task, self.objective, self.ema, self.device, self._one_held_out, self._held_out)

    def train(self) -> Result:
        """Step until the end, a signal or the time limit."""
        config = self.config
        if self.step >= config.steps:
            log.info("already at step %d of %d: %s", self.step, config.steps, config.out)
            self._export()  # the last one may have been cut off
            return Result(self.step, self.images, "done", {})
        data = self._loader("train", config.batch_size)
        with closing(iter(data)) as stream:
            batches = self._announce(stream)
            if self.main:
                files.write(config.out / "run.json", json.dumps(self.resolved, indent=2, default=str).encode())
            return self._train(data, batches)

    def _train(self, data: Batches, batches: Iterator[Batch]) -> Result:
        config = self.config
        if self.step == 0:
            self._look(sample=True, measure=False)
        self.model.train()
        self.clock.start(data.seconds_waited)
        reason = "done"
        while self.step < config.steps:
            with memory_explained("a training step", LESS_MEMORY):
                self._step(batches)
            asked = None if self.step == config.steps else self._asked_to_stop()
            last = self.step == config.steps or asked == "max_minutes"
            if last or self.step % config.log_every == 0:
                self._report(data.seconds_waited)
            with self.clock.aside():
                if asked or last or self.step % config.save_every == 0:
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
        return Result(self.step, self.images, reason, self.last_row)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` micro-batches; waits for no device."""
        config = self.config
        lr = learning_rate(self.optim, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(mix(config.seed, "dropout", self.images, self.accelerator.process_index))
        for micro in range(config.accumulate):
            batch = to_device(next(batches), self.device)
            last = micro == config.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, means = self.wrapped(batch)
                (loss / config.accumulate).backward()
            self.meter.add(means)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or float("inf"), foreach=True)
        self.meter.add({"grad_norm": norm})
        bad = ~(norm.isfinite() & loss.isfinite())
        self.first_bad = torch.where(bad & (self.first_bad < 0), self.step, self.first_bad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        self.step += 1
        self.images += config.batch_size

    def _report(self, waited: float) -> None:
        """Average over processes, check for NaN, write status line and `metrics.jsonl`: the one place that syncs."""
        self._check_finite()
        seconds, fraction = self.clock.interval(waited)
        names, values = self.meter.means()
        means = dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        steps = self.step - self.last_row.get("step", self.start_step)
        self.last_row = {
            "step": self.step,
            "images": self.images,
            "img_per_s": steps * self.config.batch_size / seconds,
            **means,
            "lr": self.optimizer.param_groups[0]["lr"],
            "memory_gb": memory_gb(self.device),
            "data_fraction": fraction,
            "minutes": self.minutes + self.clock.minutes(),
        }
        if self.metrics is not None:
            self.metrics.add(self.last_row)
            log.info(status_line(self.last_row))

    def _check_finite(self) -> None:
        total = int(self.accelerator.reduce(self.first_bad.float(), "sum").item())
        if total != -self.world:
            step = int(self.first_bad)
            raise NonFiniteError(
                f"loss or gradient became NaN or infinite at step {step if step >= 0 else self.step} (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.2g}): lower it or train in fp32; earlier checkpoints are whole"
            )

    def _asked_to_stop(self) -> str | None:
        """The signal's name or `max_minutes`, agreed between all processes (which look every fifth step)."""
        late = self.config.max_minutes is not None and self.clock.minutes() > self.config.max_minutes
        name = self.stop.name or ("max_minutes" if late else None)
        if self.world == 1 or self.step % 5:
            return name if self.world == 1 else None
        flags = torch.tensor([float(late), float(self.stop.name is not None)], device=self.device)
        any_late, any_signal = self.accelerator.reduce(flags, "sum").tolist()
        return (self.stop.name or "signal") if any_signal else "max_minutes" if any_late else None

    def _save(self) -> None:
        """Checkpoint, then export."""
        self._check_finite()
        if self.main:
            moments = checkpoint.optimizer_state(self.model, self.optimizer)
            tensors = {"model": self.model.state_dict(), "optimizer": moments}
            for index, decay in enumerate(self.ema.decays):
                tensors[f"ema-{decay}"] = self.ema.named(index)
            if self.memory is not None:
                tensors["memory"] = self.memory.state_dict()
            state = {
                "step": self.step,
                "images": self.images,
                "minutes": self.minutes + self.clock.minutes(),
                "config": self.resolved,
            }
            checkpoint.save(self.config.out / "checkpoints", self.step, tensors, state, self.config.keep)
        self._export()

    def _export(self) -> None:
        """Write the averaged stage; the first process writes, all wait."""
        if self.main:
            with self.ema.swapped():
                self.export(self.config.out, {k: v.detach().cpu() for k, v in self.model.state_dict().items()})
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = [checkpoint.find(self.config.out / "checkpoints", self.config.resume) if self.main else None]
        path = broadcast_object_list(found)[0]
        if path is None:
            return
        tensors, state = checkpoint.load(path)
        checkpoint.load_model(self.model, tensors["model"], path)
        checkpoint.load_optimizer(self.model, self.optimizer, tensors["optimizer"])
        for index, decay in enumerate(self.ema.decays):
            if f"ema-{decay}" not in tensors:
                log.warning("%s has no average of decay %s: starting it from the weights", path, decay)
            self.ema.load(index, tensors.get(f"ema-{decay}", {}))
        if self.memory is not None and "memory" in tensors:
            checkpoint.load_model(self.memory, tensors["memory"], path)
        elif self.memory is not None:
            log.warning("%s has no memory of losses: starting it empty", path)
        self.step, self.images, self.minutes = state["step"], state["images"], state["minutes"]
        before, now = dict(flatten(state["config"])), dict(flatten(self.resolved))
        changes = [f"{k}: {before.get(k)} → {now.get(k)}" for k in {**before, **now} if before.get(k) != now.get(k)]
        log.info("resumed %s at step %d%s", path, self.step, f" with {', '.join(changes)}" if changes else "")

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
                size // (accumulate * self.world),
                accumulate,
                self.world,
            )
            announce(self.task, first, self.device, self.dtype)
            if "image" in first:
                save_png(grid(first["image"][:16]), self.config.out / "samples" / "inputs.png")
        return itertools.chain([first], batches)

    def _look(self, sample: bool, measure: bool) -> None:
        """Sample grid (first process) and held-out numbers (all processes)."""
        if sample and self.main and self.config.sample_every != 0:
            self.held_out.sample(self.config.out / "samples" / f"step-{self.step:06d}.png")
        names, values = self.held_out.measure() if measure else ([], torch.empty(0))
        if names:
            means = dict(zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True))
            if self.metrics is not None:
                numbers = {f"val_{name}": value for name, value in means.items()}
                self.metrics.add({"step": self.step, "images": self.images, **numbers})
                log.info("held out | %s", " | ".join(f"{name} {value:.4g}" for name, value in means.items()))
        if sample or measure:
            self.accelerator.wait_for_everyone()

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
        here = {"rank": self.accelerator.process_index, "world": self.world, "accumulate": self.config.accumulate}
        here["start"] = self.images if split == "train" else 0
        bad_log = self.config.out / "bad.jsonl"
        seed = self.config.seed
        return self.make_loader(seed=seed, batch_size=batch_size, split=split, bad_log=bad_log, **(here | changes))
