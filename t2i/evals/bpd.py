"""Bits per dimension: what pictures cost under a decoder, in all and by part of its process.

B batch · N pictures · T steps of the process
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.core.types import Batch, Condition
from t2i.data.loader import Loader, ShapesSource
from t2i.diffusion.likelihood import Bits, bits_per_dim
from t2i.diffusion.prediction import Parametrisation
from t2i.diffusion.process import Process


class Told(Protocol):
    """A decoder's task: what it is told of pictures, and what its output means."""

    model: Any
    parametrisation: Parametrisation

    def condition(self, batch: Batch) -> Condition:
        """Of every picture of a batch, nothing dropped."""


@torch.no_grad()
def measure(task: Told, process: Process, batches: Iterable[Batch]) -> Bits:
    """The bound of every picture under the decoder of a task, told of each what it is told in training.

    Args:
        process: the decoder's, or some of its steps.
        batches: on the decoder's device; the noise of a picture follows from its `seed`.
    """
    model, parts = task.model, []
    for batch in batches:
        condition = model.project(task.condition(batch))
        streams = Streams(batch["seed"], "bits")
        parts.append(bits_per_dim(model, condition, process, task.parametrisation, batch["image"], streams))
    return Bits(*(torch.cat(values) for values in zip(*parts, strict=True)))


def pictures(loader: Loader, num: int, keys: Sequence[str], device: torch.device) -> Iterator[Batch]:
    """Batches of `num` samples on a device, or of as many as there are. Raises UsageError where they lack a key."""
    files = [source for source in loader.data.sources if not isinstance(source, ShapesSource)]
    if len(files) == len(loader.data.sources):
        num = min(num, sum(len(source) for source in files))
    with closing(iter(loader)) as batches, tqdm(total=num, disable=None, unit="picture", leave=False) as bar:
        while num > 0:
            batch = {key: value[:num] for key, value in next(batches).items()}
            if missing := [key for key in keys if key not in batch]:
                raise UsageError(f"the model is told {missing}, the data has {sorted(batch)}")
            yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            num -= len(batch["seed"])
            bar.update(len(batch["seed"]))


def summary(bits: Bits, process: Process) -> dict[str, Any]:
    """Means over N pictures as JSON-able numbers; the standard error is None for one picture."""
    num, vb = len(bits.total), bits.vb.mean(dim=0)  # (T,)
    quarters = [part.tolist() for part in torch.arange(process.num_steps).tensor_split(4) if len(part)]
    return {
        "pictures": num,
        "bits_per_dim": bits.total.mean().item(),
        "standard_error": bits.total.std().item() / num**0.5 if num > 1 else None,
        "prior": bits.prior.mean().item(),
        "quarters": [
            {"timesteps": [process.positions[q[0]], process.positions[q[-1]]], "vb": vb[q].sum().item()}
            for q in quarters
        ],
        "timesteps": list(process.positions),
        "vb": vb.tolist(),
        "eps_mse": bits.eps_mse.mean(dim=0).tolist(),
        "x_0_mse": bits.x_0_mse.mean(dim=0).tolist(),
        "each": bits.total.tolist(),
    }


def table(result: dict[str, Any], where: str) -> str:
    """Lines to print of a `summary`: the total, the prior's term, and those of the steps by quarter of the process."""
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    lines = [f"{'bits per dimension':<22}{result['bits_per_dim']:>8.4f}{error}   {result['pictures']} {where}"]
    lines.append(f"{'  prior':<22}{result['prior']:>8.4f}")
    for quarter in result["quarters"]:
        first, last = quarter["timesteps"]
        lines.append(f"{f'  timesteps {first}…{last}':<22}{quarter['vb']:>8.4f}")
    return "\n".join(lines)
