"""Steps drawn by what they cost, in the tasks that offer it."""

from typing import Any

import pytest
import torch
from conftest import small_decoder, small_upsampler, with_diffusion
from pydantic import ValidationError
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Batch
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.upsampler.task import UpsamplerOptions, UpsamplerTask

BY_LOSS: dict[str, Any] = {"timesteps": "loss_second_moment"}


def tasks() -> list[DecoderTask | UpsamplerTask]:
    """Few steps, so that each is soon known."""
    config = small_decoder().config
    few = with_diffusion(config, num_steps=5).diffusion
    config = DecoderConfig(unet=config.unet.model_copy(update={"context_dim": None}), diffusion=few, image_size=32)
    torch.manual_seed(0)
    sampling = {"steps": 5, "guidance": 1}
    upsampler = small_upsampler(8, 16)
    upsampler.config = with_diffusion(upsampler.config, num_steps=5)
    return [
        DecoderTask(Decoder(config), DecoderOptions(**BY_LOSS, sampling=sampling)),
        UpsamplerTask(upsampler, UpsamplerOptions(**BY_LOSS, sampling=sampling)),
    ]


def batch(seeds: list[int], side: int) -> Batch:
    image = Streams(seeds, "picture").uniform(3, side, side) * 2 - 1
    return {"image": image, "seed": seeds, "caption": [""] * len(seeds)}


@pytest.mark.parametrize("which", [0, 1])
def test_losses_are_remembered_as_they_are_and_trained_with_their_weight(which: int) -> None:
    task, side = tasks()[which], (32, 16)[which]
    memory = task.memory
    assert memory is not None
    assert dict(task.named_buffers(prefix=""))["memory.history"] is memory.history
    times: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    with torch.no_grad():
        task.model.train()
        for i in range(4):
            task.loss(batch(list(range(24 * i, 24 * i + 24)), side))
        assert memory.seen.min() >= 10
        seeds = list(range(1000, 1012))
        p, before = memory.probabilities(), memory.seen.clone()
        assert p.max() > 1.5 * p.min()
        got = task.loss(batch(seeds, side))
        step = times[-1]
        torch.testing.assert_close(got["loss"], (got["mse"] + 5 / 1000 * got["vb"]) / (5 * p[step]))
        assert torch.equal(memory.seen - before, torch.bincount(step, minlength=5))
        kept = {float(x) for x in memory.history.flatten()}
        assert {float(x) for x in got["mse"] + 5 / 1000 * got["vb"]} <= kept

        task.model.eval()
        before, history = memory.seen.clone(), memory.history.clone()
        held_out = task.loss(batch(seeds, side))
        torch.testing.assert_close(held_out["loss"], held_out["mse"] + 5 / 1000 * held_out["vb"])
        assert torch.equal(memory.seen, before)
        assert torch.equal(memory.history, history)
        uniform = type(task)(task.model, task.options.model_copy(update={"timesteps": "uniform"}))  # type: ignore[arg-type]
        assert torch.equal(uniform.loss(batch(seeds, side))["loss"], held_out["loss"])


def test_a_shift_of_steps_that_are_not_uniform_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"time_shift=3\.0 is for uniform timesteps, not for 'loss_second_moment'"
    ):
        DecoderOptions(**BY_LOSS, time_shift=3.0)
    assert DecoderOptions(time_shift=3.0).timesteps == "uniform"
