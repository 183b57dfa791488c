"""What one picture costs in arithmetic, counted without weights and without a picture: tensors are shapes."""

from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2i.diffusion.sampling import Sampling
from t2i.stages.registry import stage_of


class Cost(NamedTuple):
    """FLOPs, two for each product that is added up: `once` for a picture, to read what it is drawn from, and `step` for
    each evaluation of the network."""

    once: int
    step: int

    def of(self, sampling: Sampling, num_evaluations: int, passes: int = 1) -> int:
        """FLOPs of a picture; guidance reads and evaluates twice.

        Args:
            num_evaluations: of one pass.
            passes: how often all of it is sampled for one picture.
        """
        rows = 1 if sampling.guidance == 1 else 2
        return rows * (self.once + passes * num_evaluations * self.step)


@torch.no_grad()
def cost(model: nn.Module) -> Cost | None:
    """Of a stage that gives an example of its work (see `Stage.example`); CLIP sees a picture in one `step`, as an
    autoregressive prior draws all of its codes. None of others.

    Only the config of `model` counts; it may be on the meta device.
    """
    example = stage_of(model).example
    if example is None:
        return None
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # other kernels of attention are not counted on a CPU
        work = example(type(model)(model.config).eval())
        once, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with once:
            read = work.once()
        with step:
            work.step(read)
    return Cost(once.get_total_flops(), step.get_total_flops())
