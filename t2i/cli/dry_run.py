"""What a training would see, need and take: `t2i train CONFIG --dry-run`. Nothing is written."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.devices import memory_explained
from t2i.core.progress import duration, to_stderr
from t2i.core.types import Task
from t2i.io.files import read_json
from t2i.run import build, judge_of, load_run
from t2i.stages.registry import stage
from t2i.train.checkpoint import find
from t2i.train.ema import Ema
from t2i.train.evaluation import Evaluation
from t2i.train.held_out import HeldOut
from t2i.train.learner import Learner
from t2i.train.limit import SPEED, num_bytes
from t2i.train.loaders import Loaders
from t2i.train.log import announce, memory_gb
from t2i.train.loop import LESS_MEMORY
from t2i.train.objective import Batches, LoaderFactory, to_device
from t2i.train.optim import learning_rate
from t2i.train.parallel import Parallel
from t2i.train.settings import TrainConfig, choose_dtype, num_times
from t2i.train.stop import StopRequest
from t2i.train.tracking import check_trackers

_STEPS = 3  # that are measured


def dry_run(path: str | Path, overrides: Sequence[str]) -> Iterator[str]:
    """Lines about the data, the network, memory and time, after a few steps in memory alone.

    Raises what the training itself would before its first steps.
    """
    to_stderr()
    run = load_run(path, list(overrides))
    check_trackers(run.train.trackers)
    train = run.train
    if train.num_threads:
        torch.set_num_threads(train.num_threads)
    task, make_loader, _ = build(str(path), run, stage(run.stage))
    judge = judge_of(run, stage(run.stage), task)
    parallel = Parallel(train.device)
    task.to(parallel.device)
    model: nn.Module = task.model.to(parallel.device, memory_format=torch.channels_last)
    loader = make_loader(seed=train.seed, batch_size=train.batch_size, accumulate=train.accumulate)
    stream = iter(loader)
    first = next(stream)
    batches = chain([first], stream)
    announce(task, first, parallel.device, choose_dtype(train.precision, parallel.device), train.prompts)
    for source, opened in zip(run.data.sources, loader.data.sources, strict=True):
        yield f"data: {source.src}, {len(opened) if hasattr(opened, '__len__') else 'endless'} samples to train on"
    dtype, phases = choose_dtype(train.precision, parallel.device), enumerate(task.phases())
    learners = [Learner(phase, run.optim, parallel, dtype, first=number == 0) for number, phase in phases]
    ema = Ema(model, train.ema)
    seconds = []
    for step in range(_STEPS):
        before = time.perf_counter()
        with memory_explained("a training step", LESS_MEMORY):
            micro = [to_device(next(batches), parallel.device) for _ in range(train.accumulate)]
            lr = learning_rate(run.optim, step, train.steps)
            finite = [learner.step(micro, train.accumulate, lr, train.max_grad_norm)[1] for learner in learners]
            ema.update(step)
            all(map(bool, finite))  # which waits for the device
        seconds.append(time.perf_counter() - before)
    stream.close()
    yield from _cost(task, learners, ema, parallel.device)
    loaders = Loaders(partial(_without_log, make_loader), train, parallel, StopRequest())
    held_out = HeldOut(task, learners[0].objective, ema, parallel.device, loaders.one, loaders.held_out, train.prompts)
    saved = find(train.out / "checkpoints", train.resume, whole=False)
    done = read_json(saved / "state.json")["step"] if saved is not None else 0
    judged = Evaluation(train.eval, judge, held_out, loaders, parallel) if train.eval and judge else None
    yield _time(train, done, min(seconds[1:]), held_out, num_bytes(model, train), judged)
    goes_on = f" and continues from step {done} of {train.steps}" if saved is not None else ""
    yield f"nothing was written; without --dry-run the run goes to {train.out}{goes_on}"


def _time(train: TrainConfig, done: int, step: float, held_out: HeldOut, size: int, judged: Evaluation | None) -> str:
    """What the run will take after the steps that are `done`, by one grid, one evaluation and one judgement in memory;
    a save is guessed from its bytes."""
    todo, first = max(0, train.steps - done), done == 0 and train.sample_every != 0  # a grid before the first step
    counts = {
        "grid": num_times(done, train.steps, train.sample_every) + first if held_out.draws else 0,
        "evaluation": num_times(done, train.steps, train.val_every),
        "judgement": num_times(done, train.steps, judged.config.every) if judged is not None else 0,
        "save": num_times(done, train.steps, train.save_every),
    }
    took = {"save": size / SPEED}
    todos: dict[str, Callable[[], object]] = {
        "grid": lambda: held_out.draw(""),
        "evaluation": lambda: held_out.measure()[0],
        "judgement": judged.measure if judged is not None else dict,
    }
    with memory_explained("a grid or an evaluation", LESS_MEMORY):
        for what, do in todos.items():
            before = time.perf_counter()
            if counts[what] and not do():
                counts[what] = 0  # nothing is held out
            took[what] = time.perf_counter() - before
    whole = step * todo + sum(counts[what] * took[what] for what in counts)
    beside = ", ".join(f"{num} {what}{'s' * (num > 1)} of {took[what]:.2g} s" for what, num in counts.items() if num)
    cut = train.max_minutes is not None and whole > 60 * train.max_minutes
    limit = f"; train.max_minutes={train.max_minutes:g} ends it before" if cut else ""
    return (
        f"time: {step:.3g} s a step of {train.batch_size} pictures, {duration(step * todo)} for {todo} "
        f"steps, and {beside or 'nothing beside them'}: {duration(whole)} in all{limit}"
    )


def _without_log(make: LoaderFactory, *, bad_log: Path, **given: Any) -> Batches:
    """A loader that keeps no list of what it passes over."""
    return make(**given)


def _cost(task: Task, learners: list[Learner], ema: Ema, device: torch.device) -> Iterator[str]:
    """Parameters and memory."""
    trained = [p for learner in learners for p in learner.phase.module.parameters()]
    moving = [p for p in trained if p.requires_grad]
    states = [state for learner in learners for state in learner.optimizer.state.values()]
    parts: dict[str, Iterable[Tensor]] = {
        "weights": task.parameters(),
        "gradients": moving,
        "optimiser": (x for state in states for x in state.values() if isinstance(x, Tensor)),
        "averages": (x for average in ema.averages for x in average),
    }
    every, own, free = (sum(p.numel() for p in some) / 1e6 for some in (task.parameters(), trained, moving))
    beside = f", beside {every - own:.2f} M of frozen neighbours" if every > own else ""
    yield f"network: {own:.2f} M parameters, of which {free:.2f} M are trained{beside}"
    listed = ", ".join(f"{name} {sum(x.nbytes for x in some) / 1e9:.2g}" for name, some in parts.items())
    yield f"memory: at most {memory_gb(device):.2g} GB in these steps on {device}; of it {listed}"
