"""A task of a few hundred weights, and the one call that trains it, here or in a process of its own."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from t2i.core.seed import Streams, mix
from t2i.core.types import Phase, Task
from t2i.data.config import DataConfig
from t2i.data.loader import Loader, NothingHeldOutError
from t2i.diffusion.timesteps import LossSecondMoment, draw_steps
from t2i.io import weights
from t2i.measures.judge import PairsJudge
from t2i.nn.contrastive import contrastive_loss
from t2i.train import OptimConfig, Result, TrainConfig, fit


class Net(nn.Module):
    """A convolution, a norm, dropout, a frozen layer and a buffer: one of each thing that a resume must restore."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Dropout(0.1)
        self.frozen, self.last = nn.Conv2d(8, 8, 1).requires_grad_(False), nn.Conv2d(8, 3, 3, padding=1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.frozen(self.drop(nn.functional.silu(self.norm(self.first(x * self.scale))))))


class TinyTask(Task):
    """Denoises pictures; the noise comes from the sample's stream."""

    keys = ("image", "seed")

    def __init__(self, dropout: float = 0.1, nan_at: int | None = None, memory: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__(Net())
        self.memory = LossSecondMoment(2) if memory else None  # of two levels of noise: none, and the usual
        self.model.drop.p = dropout
        self.nan_at, self.calls = nan_at, 0
        self.seen: list[int] = []

    def loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        x = batch["image"]
        streams = Streams(batch["seed"], "tiny")
        memory = self.memory if self.model.training else None
        level = torch.ones(len(x), dtype=torch.long)
        if self.memory is not None:
            level = draw_steps(streams, 2, x.device, memory=memory)
        noise = 0.5 * level[:, None, None, None] * streams.normal(*x.shape[1:])
        error = (self.model(x + noise) - x).square().mean((1, 2, 3))
        if memory is not None:
            error = memory.weigh(level, error)
        if self.model.training:
            self.seen += batch["seed"]
            self.calls += 1
            if self.calls == self.nan_at:
                error = error * float("nan")
        return {"loss": error, "half": error / 2}

    def sample(self, batch: dict[str, Any]) -> torch.Tensor:
        assert not self.model.training
        return self.model(batch["image"])

    def metrics(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"count": float(len(batch["seed"]))}


class Pairs(TinyTask):
    """Draws what it makes of pictures beside them."""

    groups = ("held-out picture", "drawn")

    def sample(self, batch: dict[str, Any]) -> torch.Tensor:
        assert not self.model.training
        return torch.cat([batch["image"], self.model(batch["image"])])


class Against(TinyTask):
    """And a critic with an optimiser of its own: the first phase shall please it, the second tells pictures apart."""

    def __init__(self, kill_at: int = -1) -> None:
        super().__init__(dropout=0.0)
        self.critic, self.kill_at = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 1, 3)), kill_at

    def phases(self) -> list[Phase]:
        return [
            Phase("generator", self.model, self._please),
            Phase("critic", self.critic, self._tell_apart, lr=0.5),
        ]

    def _please(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = super().loss(batch)
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        score = self.critic(self.model(batch["image"])).mean((1, 2, 3))
        return {"loss": losses["loss"] - 0.1 * score, "half": losses["half"]}

    def _tell_apart(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            made = self.model(batch["image"])
        real, fake = (self.critic(x).mean((1, 2, 3)) for x in (batch["image"], made))
        return {"loss": (1 - real).relu() + (1 + fake).relu()}


class Pictures:
    """Batches of flat pictures, addressed by position as `t2i.data.loader.Loader` is."""

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        start: int,
        split: str,
        bad_log: Path | None,
    ) -> None:
        self.micro = batch_size // (accumulate * world)
        self.position, self.stride = start + rank * self.micro, self.micro * world
        self.key, self.seconds_waited = (seed, split), 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            seeds = [mix(*self.key, p) for p in range(self.position, self.position + self.micro)]
            colour = Streams(seeds, "picture").uniform(3, 1, 1) * 2 - 1
            yield {
                "image": colour.expand(-1, 3, 8, 8).contiguous(),
                "seed": seeds,
                "caption": [f"picture {s}" for s in seeds],
            }
            self.position += self.stride


class HeldOutByOne(Pictures):
    """The first process has held-out pictures, the second finds none that can be used."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.position and self.key[1] == "val":
            raise NothingHeldOutError("unusable data")
        return super().__iter__()


def export(folder: Path, state: dict[str, torch.Tensor]) -> None:
    weights.save_folder(folder, {"kind": "tiny"}, state)


def run(
    out: Path,
    task: TinyTask | None = None,
    optim: OptimConfig | None = None,
    loader: Any = Pictures,
    began: float | None = None,
    judge: Any = None,
    **changes: Any,
) -> Result:
    """Train the tiny task for 12 steps, or as `changes` say."""
    settings = {
        "steps": 12,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",  # whatever the machine is fast at
        "log_every": 1,
        "save_every": 5,
        "val_every": 0,
        "num_threads": 1,
    } | changes
    config = TrainConfig(out=out, **settings)
    optim = optim or OptimConfig(lr=1e-2, warmup=3, schedule="cosine", weight_decay=0.01)
    resolved = {"train": config.model_dump(mode="json"), "optim": optim.model_dump(mode="json")}
    how: Any = {"export": export, "resolved": resolved, "began": began, "judge": judge}
    return fit(task or TinyTask(), loader, config, optim, **how)


def curve(out: Path, name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


class SlowTask(TinyTask):
    """Sleeps in every step, and can kill or signal its own process."""

    def __init__(self, dropout: float, kill_at: int, signal_at: int, memory: bool = False) -> None:
        super().__init__(dropout, memory=memory)
        self.kill_at, self.signal_at = kill_at, signal_at

    def loss(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        losses = super().loss(batch)
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.signal_at and os.environ.get("RANK", "0") == "0":
            if os.getpgrp() == os.getpid():
                os.killpg(os.getpid(), signal.SIGTERM)  # its loaders, too
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        return losses


def contrast(folder: Path, rank: int, world: int) -> None:
    """This process's part of a contrastive step: losses and hits of its rows, and a weight's mean gradient."""
    torch.set_num_threads(1)
    if world > 1:
        address = f"file://{folder / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(6).chunk(world)[rank]
    weight = torch.randn(5, 4, generator=draw).requires_grad_()
    image, text = (nn.functional.normalize(torch.randn(6, 5, generator=draw) @ weight, dim=-1)[rows] for _ in "it")
    loss, hit = contrastive_loss(image, text, torch.tensor([1, 2, 3, 1, 4, 2])[rows], torch.tensor(5.0))
    loss.mean().backward()
    assert weight.grad is not None
    if world > 1:
        dist.all_reduce(weight.grad)
        weight.grad /= world
    weights.save_tensors(folder, {"loss": loss.detach(), "hit": hit, "grad": weight.grad}, f"{world}-{rank}")
    if world > 1:
        dist.destroy_process_group()


def child(
    out: Path, printed: Path, environment: dict[str, str], kill_at: int, signal_at: int, changes: dict[str, Any]
) -> None:
    """What a process of its own does: train, from a folder in a process group where one is given."""
    os.environ.update(environment)
    with open(printed, "a") as file:
        os.dup2(file.fileno(), 2)
    if folder := changes.pop("folder", None):
        os.setpgrp()
        multiprocessing.set_start_method("fork", force=True)  # not the way this process came about
        changes["loader"] = partial(Loader, DataConfig(source=folder, size=8, num_workers=2))
    if "eval" in changes:
        run(out, Pairs(0.0), judge=PairsJudge(changes["eval"]["metrics"], changes["eval"]["extractor"]), **changes)
        return
    if changes.pop("against", False):
        run(out, Against(kill_at), **changes)
        return
    task = SlowTask(changes.pop("dropout", 0.1), kill_at, signal_at, changes.pop("memory", False))
    run(out, task, **changes)
