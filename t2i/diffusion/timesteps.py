"""At which timesteps a network is trained, and how often.

B batch, over all processes where losses are remembered · T steps · K losses remembered for each step
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.seed import Streams, upload

Timesteps = Literal["uniform", "loss_second_moment"]


def draw_steps(
    streams: Streams,
    num_steps: int,
    device: torch.device | str,
    shift: float = 1.0,
    memory: "LossSecondMoment | None" = None,
) -> Tensor:
    """One step for every sample, int64 (B,): drawn by `memory` if there is one, else `shifted` from uniform."""
    if memory is not None:
        return memory.draw(upload(streams.uniform(), device))
    return upload(shifted(streams.integers(num_steps), num_steps, shift), device)


def shifted(step: Tensor, num_steps: int, shift: float = 1.0) -> Tensor:
    """Uniform steps, crowded towards noise (shift > 1) or towards the picture (shift < 1).

    With u the middle of a step on [0, 1] it becomes shift·u / (1 + (shift − 1)·u) (Esser et al. 2024, eq. 23): with a
    shift of 3 half of the steps are the noisiest quarter, where a caption decides what goes where.

    Args:
        step: int64 in {0 … num_steps − 1}.
        num_steps: of the process.
        shift: greater than 0; 1 changes nothing.

    Returns:
        int64 in the same range, the same shape.
    """
    u = (step.double() + 0.5) / num_steps
    return (shift * u / (1 + (shift - 1) * u) * num_steps).long().clamp_(max=num_steps - 1)


class LossSecondMoment(nn.Module):
    """Importance sampling of steps (Nichol & Dhariwal 2021, section 3.4 and eq. 18): p ∝ sqrt(E[loss²]).

    The mean is that of the last `length` losses of a step; `uniform` of all draws stays even, and all of them do until
    every step has that many. A loss drawn so counts 1 / (T p), which leaves its expectation what it was. The losses are
    buffers on the device, the same on every process, and nothing here waits for it.
    """

    history: Tensor  # (T, K), in each row a ring
    seen: Tensor  # (T,) int64

    def __init__(self, num_steps: int, length: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        self.uniform = uniform
        self.register_buffer("history", torch.zeros(num_steps, length))
        self.register_buffer("seen", torch.zeros(num_steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """How often each step is drawn, (T,) float32."""
        num_steps, length = self.history.shape
        root = self.history.square().mean(dim=1).sqrt()  # (T,)
        learned = (1 - self.uniform) * root / root.sum() + self.uniform / num_steps
        return torch.where((self.seen >= length).all(), learned, 1 / num_steps)

    def draw(self, u: Tensor) -> Tensor:
        """Steps for numbers that are uniform on [0, 1), int64 of the same shape: the inverse of their distribution."""
        return torch.searchsorted(self.probabilities().cumsum(0), u, right=True).clamp_(max=len(self.seen) - 1)

    def weigh(self, step: Tensor, loss: Tensor) -> Tensor:
        """The losses (B,) of drawn steps (B,), each times 1 / (T p); they are remembered as they came."""
        weight = 1 / (len(self.seen) * self.probabilities()[step])
        self.remember(step, loss)
        return weight * loss

    @torch.no_grad()
    def remember(self, step: Tensor, loss: Tensor) -> None:
        """Put losses into the history, those of all processes and of one step in the order of their samples."""
        step, loss = _gathered(step), _gathered(loss.detach().float())  # (B,)
        length = self.history.shape[1]
        earlier = (step == step[:, None]).tril(-1).sum(dim=1)  # (B,) samples before this one that have its step
        seen = self.seen.index_add(0, step, torch.ones_like(step))
        number = self.seen[step] + earlier
        spare = number < seen[step] - length  # so many of one step in one batch that later ones replace these
        padded = F.pad(self.history, (0, 1))  # a column for those
        padded[step, torch.where(spare, length, number % length)] = loss
        self.history.copy_(padded[:, :length])
        self.seen.copy_(seen)


def _gathered(x: Tensor) -> Tensor:
    """Rows of all processes, in their order."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)
