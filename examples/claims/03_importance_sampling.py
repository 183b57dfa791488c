"""Claim 03: drawing timesteps by what they cost lowers the noise of the bound's gradient."""

from typing import Any

import torch
from lab import ROOT, Claim, Difference, Lab, Result, Value, bars, main
from torch import Tensor

from t2i.core.seed import mix
from t2i.core.types import Batch
from t2i.data import shapes
from t2i.diffusion.sampling import Sampling
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.registry import load_stage

CLAIM = Claim(
    3,
    "importance_sampling",
    "Drawing timesteps by what they cost lowers the noise of the variational bound's gradient",
    "Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.3 and Figure 6",
    "The bundled Improved DDPM's gradient of the variational bound is taken on batches of 16 pictures, timesteps "
    "drawn uniformly or by the last ten losses of each, from the same pictures. The paper's noise scale is the "
    "variance of the gradient over batches, summed over weights, by the square of its mean. The mean is the same "
    "either way, for losses are weighed by how rarely their timestep is drawn, and too small to be measured beside "
    "the noise; so what decides is the variance.",
)
BATCH = 16


def gradient(task: Any, batch: Batch) -> Tensor:
    """Of all weights, as one vector."""
    task.model.zero_grad()
    task.loss(batch)["loss"].mean().backward()
    return torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])


def variance(task: Any, first: int, num: int) -> float:
    """Tr Cov(g) of the gradient g of one batch, from `num` batches."""
    total, squares = torch.zeros(()), 0.0
    for i in range(num):
        g = gradient(task, pictures(first + i)).double()
        total = total + g
        squares += float(g.square().sum())
    return (squares - float(total.square().sum()) / num) / (num - 1)


def pictures(number: int) -> Batch:
    """A batch, with other seeds than any other."""
    seeds = [mix("claim", number, i) for i in range(BATCH)]
    return shapes.batch(seeds, 32, num_things={1: 1.0})


@torch.no_grad()
def fill(task: Any, times: int) -> None:
    """The memory of losses, from 16 batches told again and again with other noise."""
    batches = [pictures(10**6 + i) for i in range(min(16, times))]
    for i in range(times):
        batch = batches[i % len(batches)]
        task.loss(batch | {"seed": [mix("fill", i, seed) for seed in batch["seed"]]})


def run(lab: Lab) -> Result:
    num, warm = lab.choose("batches", 60, 2), lab.choose("batches that fill the memory of losses", 2000, 1)
    times = lab.choose("repetitions", 4, 2)
    found: dict[str, list[float]] = {"uniform": [], "by loss": []}
    model: Any = load_stage(ROOT / "weights/shapes-iddpm/decoder", expect="decoder").train()
    tasks = {}
    for way, timesteps in {"uniform": "uniform", "by loss": "loss_second_moment"}.items():
        options = DecoderOptions(kind="vlb", timesteps=timesteps, sampling=Sampling(steps=1))
        tasks[way] = DecoderTask(model, options)
    fill(tasks["by loss"], warm)
    for time in range(times):
        for way, task in tasks.items():
            found[way].append(variance(task, time * num, num))
    logs = {way: torch.tensor(values).log10().tolist() for way, values in found.items()}
    rows = {way: {"log10 of the variance": Value.of_trainings(values)} for way, values in logs.items()}
    less = [a - b for a, b in zip(logs["uniform"], logs["by loss"], strict=True)]
    decides = [Difference("log10 of the variance, uniform - by loss", Value.of_trainings(less))]
    filled = bool((tasks["by loss"].memory.seen >= 10).all())
    notes = "" if filled else "The memory of losses was not full, so that both drew uniformly."
    return Result(rows, decides, "Intervals are over repetitions with other pictures; the network is one.", notes=notes)


def plot(figure: Any, result: Result) -> None:
    bars(figure.subplots(), result.rows, "log10 of the variance", "log10 of the gradient's variance")


if __name__ == "__main__":
    main(CLAIM, run, plot)
