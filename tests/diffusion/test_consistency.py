"""Consistency models: the scalings, steps and distances are the published ones, and what a Gaussian gives is exact."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition
from t2i.diffusion.consistency import (
    Consistency,
    Distillation,
    Scaled,
    consistency_loss,
    denoising_loss,
    few_steps,
    scalings,
)
from t2i.diffusion.process import Step

PROCESS = Consistency().process()
NOTHING = Condition()
TABLE = {  # sqrt(alpha_bar), sqrt(1 - alpha_bar), c_skip, c_out, c_in of OpenAI's consistency decoder
    16: (0.99934286, 0.03624646, 0.99541974, 0.03617442, 1.99607050),
    512: (0.70165652, 0.71251535, 0.27810028, 0.44857249, 1.25912368),
    1008: (0.02282689, 0.99973941, 0.00570895, 0.49996743, 1.00019538),
    1023: (0.00004813, 1.00000000, 0.00001203, 0.50000000, 1.00000000),
}


@pytest.mark.parametrize("step", TABLE)
def test_scalings_are_those_of_the_published_decoder(step: int) -> None:
    like = torch.zeros(1, 1)
    signal, sigma = (PROCESS.at(f"sqrt_{name}", step, like) for name in ("alpha_bar", "one_minus_alpha_bar"))
    c_in, c_skip, c_out = scalings(PROCESS, step, like)
    found = torch.cat([signal, sigma, c_skip, c_out, c_in]).flatten()
    torch.testing.assert_close(found, torch.tensor(TABLE[step]), rtol=0, atol=2e-6)  # of float32 tables there


def test_a_step_that_is_a_tensor_looks_up_rows() -> None:
    like = torch.zeros(4, 1, 1)
    together = scalings(PROCESS, torch.tensor([*TABLE]), like)
    for row, step in enumerate(TABLE):
        alone = scalings(PROCESS, step, like)
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))


def test_steps_are_rounded_to_the_grid() -> None:
    diffusion = Consistency()
    assert diffusion.steps() == [1008, 512]
    assert [diffusion.rounded(step) for step in (0, 15, 16, 511, 1007, 1008, 1023)] == [
        16,
        16,
        32,
        512,
        1008,
        1008,
        1008,
    ]
    assert sorted({diffusion.rounded(step) for step in range(1024)}) == [*range(16, 1009, 16)]
    assert diffusion.grid(64) == diffusion.grid(1024) == [*range(16, 1009, 16)]
    assert diffusion.grid(32) == [*range(32, 1024, 32), 1008]
    assert diffusion.grid(1) == [1008]
    assert diffusion.grid(2) == diffusion.steps()[::-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 60}, "num_steps=1024 is not a multiple of num_points=60"),
        ({"drawn_at": (1.0, 1.5)}, "drawn_at are parts of the process in 0…1, got 1.5"),
        ({"drawn_at": ()}, "at least 1"),
    ],
)
def test_what_is_no_grid_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Consistency(**changes)


class Ideal:
    """What x_0 of a normal distribution of some mean and standard deviation is on average, given x_t; `output` is F of
    it, as a network would say it."""

    def __init__(self, mean: float = 0.25, std: float = 0.5) -> None:
        self.mean, self.std, self.calls = mean, std, []

    def __call__(self, x_t: Tensor, step: Step, condition: Condition = NOTHING) -> Tensor:
        self.calls.append(step)
        signal, sigma = (PROCESS.at(f"sqrt_{name}", step, x_t) for name in ("alpha_bar", "one_minus_alpha_bar"))
        gain = signal * self.std**2 / ((signal * self.std) ** 2 + sigma**2)
        return self.mean + gain * (x_t - signal * self.mean)

    def model(self, scaled: Tensor, t: Tensor, condition: Condition) -> Tensor:
        c_in, c_skip, c_out = scalings(PROCESS, t, scaled)
        x_t = scaled / c_in
        return torch.cat([(self(x_t, t) - c_skip * x_t) / c_out, torch.full_like(x_t, 7.0)], dim=1)


class Exact(Ideal):
    """The map of a consistent network: x_0 along the probability flow, whose points keep their rank."""

    def __call__(self, x_t: Tensor, step: Step, condition: Condition = NOTHING) -> Tensor:
        signal, sigma = (PROCESS.at(f"sqrt_{name}", step, x_t) for name in ("alpha_bar", "one_minus_alpha_bar"))
        spread = ((signal * self.std) ** 2 + sigma**2).sqrt()
        return self.mean + self.std * (x_t - signal * self.mean) / spread


def test_a_network_is_read_through_its_scalings_and_first_channels() -> None:
    ideal, step = Ideal(), torch.tensor([16, 512, 1008])
    x_t = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    estimate = Scaled(ideal.model, PROCESS)
    torch.testing.assert_close(estimate(x_t, step, NOTHING), ideal(x_t, step))


def test_sampling_noises_and_estimates_in_turn() -> None:
    streams, ideal = Streams([3, 4]), Ideal()
    seen: list[tuple[int, int]] = []
    x_0 = few_steps(
        ideal, NOTHING, PROCESS, [1008, 512], (1, 2, 2), streams, clamp=None,
        callback=lambda done, count, x_t, p: seen.append((done, count)),
    )  # fmt: skip
    replay = Streams([3, 4])
    first = ideal(TABLE[1008][1] * replay.normal(1, 2, 2), 1008)
    second = ideal(TABLE[512][0] * first + TABLE[512][1] * replay.normal(1, 2, 2), 512)
    torch.testing.assert_close(x_0, second, rtol=0, atol=5e-6)
    assert (seen, ideal.calls[:2]) == ([(1, 2), (2, 2)], [1008, 512])


def test_every_estimate_is_clamped() -> None:
    far = few_steps(lambda x_t, step, condition: x_t + 9, NOTHING, PROCESS, [1008, 512], (1,), Streams([0]))
    assert far.tolist() == [[1.0]]
    assert few_steps(lambda x_t, s, c: x_t + 9, NOTHING, PROCESS, [1008], (1,), Streams([0]), clamp=None) > 1


def test_exact_networks_draw_the_distribution() -> None:
    x = few_steps(Exact(), NOTHING, PROCESS, [1008, 512], (4000,), Streams(range(4)), clamp=None)
    assert x.mean().item() == pytest.approx(0.25, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


def batch(num: int = 64, size: int = 16) -> Tensor:
    return 0.25 + 0.5 * torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_denoising_loss_is_that_of_f() -> None:
    """Of data whose deviation is sigma_data the scalings alone give the best estimate: F = 0, and its target has unit
    variance at every step."""
    x_0, streams = (batch(256) - 0.25), Streams(range(256))
    silent = denoising_loss(Scaled(lambda x, t, c: torch.zeros_like(x), PROCESS), x_0, NOTHING, streams)
    assert silent["loss"].mean().item() == pytest.approx(1.0, abs=0.02)
    best = denoising_loss(Scaled(Ideal(0.0).model, PROCESS), x_0, NOTHING, Streams(range(256)))
    torch.testing.assert_close(best["loss"], silent["loss"], rtol=0, atol=1e-4)  # where F = 0 is the best there is
    assert (best["mse"] <= 0.25 * best["loss"]).all()
    assert silent["loss"].shape == (256,)


def loss(student: Any, target: Any, teacher: Any, x_0: Tensor | None = None, **how: Any) -> dict[str, Tensor]:
    x_0 = batch() if x_0 is None else x_0
    grid = Consistency().grid(how.get("num_points", 32))
    return consistency_loss(
        student, target, teacher, PROCESS, grid, x_0, NOTHING, Streams(range(len(x_0))), Distillation(**how)
    )


def test_a_consistent_network_has_little_to_learn_from_its_teacher() -> None:
    """The finer the grid, the less: the teacher's steps are the flow that the network is constant along."""
    coarse, fine = (loss(Exact(0, 0.25), Exact(0, 0.25), Ideal(0, 0.25), num_points=n, last=0.0) for n in (8, 64))
    wrong = loss(Ideal(0, 0.25), Ideal(0, 0.25), Ideal(0, 0.25), num_points=64, last=0.0)
    assert fine["distance"].mean() < 0.25 * coarse["distance"].mean()
    assert fine["distance"].mean() < 0.5 * wrong["distance"].mean()


def test_the_first_point_is_the_teachers_word_and_without_one_the_picture() -> None:
    def never(x_t: Tensor, step: Step, condition: Condition) -> Tensor:
        return torch.full_like(x_t, 1e3)

    x_0 = batch(8)
    said = loss(lambda x_t, step, condition: torch.full_like(x_t, 0.5), never, Ideal(0.5, 1e-4), x_0, num_points=1)
    assert (said["distance"] < 1e-3).all()
    told = loss(lambda x_t, step, condition: x_0, never, None, x_0, num_points=1)
    assert (told["distance"] == 0).all()
    assert (told["loss"] == 0).all()


def test_the_loss_is_a_weighted_pseudo_huber_distance_and_moves_the_student_alone() -> None:
    x_0 = batch(32)
    shifts = [torch.zeros((), requires_grad=True) for _ in range(3)]
    student, target, teacher = (
        lambda x_t, step, condition, shift=shift: 0.9 * Ideal()(x_t, step) + shift for shift in shifts
    )
    found = loss(student, target, teacher, x_0, num_points=16)
    found["loss"].mean().backward()
    assert shifts[0].grad is not None
    assert shifts[1].grad is None
    assert shifts[2].grad is None
    dim = x_0[0].numel()
    h = 0.00054 * dim**0.5
    huber = (found["distance"] ** 2 * dim + h**2).sqrt() - h
    weight = found["loss"] / huber
    assert weight.min() >= 1 - 1e-4
    assert weight.max() <= 25 + 1e-3
    sigma2 = 1 / PROCESS.snr[Consistency().grid(16)].float()  # each weight is of a point
    points = ((sigma2 + 0.25) / sigma2).clamp(1, 25)
    assert (weight[:, None] - points).abs().min(dim=1).values.max() < 1e-3


def test_the_last_point_is_taken_more_often() -> None:
    steps: list[Tensor] = []

    def student(x_t: Tensor, step: Any, condition: Condition) -> Tensor:
        steps.append(step)
        return x_t

    for last in (0.0, 0.5, 1.0):
        loss(student, Ideal(), None, torch.zeros(1000, 1), last=last)
    shares = [(s == 1008).float().mean().item() for s in steps]
    assert shares == [pytest.approx(1 / 32, abs=0.02), pytest.approx(0.5 + 0.5 / 32, abs=0.05), 1.0]
    assert set(steps[0].tolist()) == set(Consistency().grid(32))


def test_a_sample_has_one_loss_whatever_the_batch() -> None:
    x_0 = batch(4)

    def of(rows: list[int]) -> Tensor:
        grid = Consistency().grid(32)
        return consistency_loss(
            Ideal(), Exact(), None, PROCESS, grid, x_0[rows], NOTHING, Streams(rows)
        )["loss"]  # fmt: skip

    torch.testing.assert_close(of([0, 1, 2, 3])[[2]], of([2]))
