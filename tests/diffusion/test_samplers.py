"""Samplers on Gaussian data, where the best denoiser and the exact flow are known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from t2i.core.choices import SAMPLERS as NAMES
from t2i.core.seed import Streams
from t2i.core.types import Condition, Prediction
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation, Target
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS, ddim, ddim_invert, ddpm, dpm_solver_pp_2m

MEAN, STD = 0.4, 0.25
NOISE = Streams([11]).normal(1, 128, 128)  # 16384 independent values


def gaussian(spec: str | int, schedule: str = "cosine", target: Target = "eps") -> tuple[ModelDenoiser, Process]:
    """The best denoiser for data N(MEAN, STD²) on some steps of a schedule."""
    full = Process.from_schedule(schedule)

    def model(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        signal, alpha_bar = full.at("sqrt_alpha_bar", t, x), full.at("alpha_bar", t, x)
        sigma = full.at("sqrt_one_minus_alpha_bar", t, x)
        share = sigma * (x - signal * MEAN) / (alpha_bar * STD**2 + sigma**2)  # E[eps | x_t]
        x_0 = MEAN + signal * STD**2 * (x - signal * MEAN) / (alpha_bar * STD**2 + sigma**2)  # E[x_0 | x_t]
        return {"eps": share, "x0": x_0, "v": signal * share - sigma * x_0}[target]

    process = full.respace(spec)
    form = Parametrisation(target, "fixed_small")
    return ModelDenoiser(model, Condition(), process, form, clamp=None), process


def flow(process: Process, x_T: Tensor) -> Tensor:
    """Where the probability flow takes x_T: the affine map between two Gaussians."""
    alpha_bar = process.tables["alpha_bar"][-1].item()
    return MEAN + STD * (x_T - alpha_bar**0.5 * MEAN) / math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)


def error(sampler: str, spec: int, schedule: str = "linear") -> float:
    denoise, process = gaussian(spec, schedule)
    return (SAMPLERS[sampler](denoise, NOISE, process) - flow(process, NOISE)).abs().max().item()


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize(("name", "spec"), [("ddpm", 1000), ("ddim", 500), ("dpm_solver_pp_2m", 80)])
def test_samplers_recover_the_gaussian(name: str, spec: int, target: Target) -> None:
    denoise, process = gaussian(spec, "linear", target)
    out = SAMPLERS[name](denoise, NOISE, process, noise=Streams([5]))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(STD, rel=0.02)


def test_stochastic_ddim_recovers_the_gaussian() -> None:
    denoise, process = gaussian(1000, "linear")
    out = ddim(denoise, NOISE, process, eta=1.0, noise=Streams([5]))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(STD, rel=0.02)


def test_deterministic_samplers_follow_the_flow_to_their_order() -> None:
    """Twice the steps: about half the error for DDIM, much less than half for the second-order solver."""
    assert 1.5 < error("ddim", 40) / error("ddim", 80) < 2.7
    for schedule in ("linear", "cosine"):
        assert error("dpm_solver_pp_2m", 40, schedule) / error("dpm_solver_pp_2m", 80, schedule) > 4
        assert error("dpm_solver_pp_2m", 40, schedule) < error("ddim", 80, schedule)


@pytest.mark.parametrize("spec", [1, 2])
def test_first_order_of_the_solver_is_ddim(spec: int) -> None:
    """With two steps all moves are of first order, and first order is DDIM."""
    denoise, process = gaussian(spec)
    torch.testing.assert_close(
        dpm_solver_pp_2m(denoise, NOISE, process), ddim(denoise, NOISE, process), rtol=1e-4, atol=1e-4
    )


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance() -> None:
    denoise, process = gaussian(20)
    from_ddim = ddim(denoise, NOISE, process, eta=1.0, noise=Streams([3]))
    torch.testing.assert_close(from_ddim, ddpm(denoise, NOISE, process, noise=Streams([3])), rtol=0, atol=2e-3)


def test_inversion_comes_back() -> None:
    x_0 = MEAN + STD * Streams([2]).normal(1, 16, 16)
    errors = []
    for spec in (50, 200, 1000):
        denoise, process = gaussian(spec)
        x_T = ddim_invert(denoise, x_0, process)
        errors.append((ddim(denoise, x_T, process) - x_0).abs().max().item())
        assert x_T.std().item() == pytest.approx(1, abs=0.1)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.005


def test_corrections_bring_inversion_nearer_than_as_many_steps() -> None:
    """The last place of the way, without a step after it to be corrected by, stays the limit."""
    x_0 = MEAN + STD * Streams([2]).normal(1, 16, 16)

    def error(spec: int, corrections: int) -> float:
        denoise, process = gaussian(spec)
        x_T = ddim_invert(denoise, x_0, process, corrections=corrections)
        return (ddim(denoise, x_T, process) - x_0).abs().max().item()

    assert error(25, 1) < error(50, 0) / 2
    assert error(25, 2) < error(25, 1) / 2
    denoise, process = gaussian(1)
    assert bool(ddim_invert(denoise, x_0, process, to_noise=True, corrections=2).isfinite().all())


def test_samples_do_not_depend_on_their_batch() -> None:
    denoise, process = gaussian(10)
    x_T = Streams([1, 2, 3], "start").normal(1, 4, 4)
    together = ddpm(denoise, x_T, process, noise=Streams([1, 2, 3]))
    alone = ddpm(denoise, x_T[1:2], process, noise=Streams([2]))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spec", [1, 2, 5])
def test_callback_sees_every_step(name: str, spec: int) -> None:
    denoise, process = gaussian(spec)
    seen: list[tuple[int, int]] = []
    states: list[Tensor] = []

    def callback(done: int, num_steps: int, x: Tensor, prediction: Prediction) -> None:
        seen.append((done, num_steps))
        states.append(x)
        assert prediction.x_0.shape == x.shape

    out = SAMPLERS[name](denoise, NOISE[..., :8, :8], process, noise=Streams([0]), callback=callback)
    assert seen == [(i + 1, spec) for i in range(spec)]
    assert torch.equal(states[-1], out)
    assert bool(out.isfinite().all())


def test_only_random_samplers_draw() -> None:
    class Forbidden:
        def normal(self, *shape: int) -> Tensor:
            raise AssertionError("drew noise")

    denoise, process = gaussian(4)
    ddim(denoise, NOISE, process, noise=Forbidden())
    dpm_solver_pp_2m(denoise, NOISE, process, noise=Forbidden())
    with pytest.raises(ValueError, match="ddpm draws noise"):
        ddpm(denoise, NOISE, process)
    with pytest.raises(ValueError, match=r"eta 0\.5"):
        ddim(denoise, NOISE, process, eta=0.5)
    with pytest.raises(ValueError, match="eta 2"):
        ddim(denoise, NOISE, process, eta=2, noise=Streams([0]))


def test_full_eta_stays_finite_on_two_steps() -> None:
    """1 - alpha_bar_prev - sigma² cancels to rounding here and must not go below zero."""
    for spec in (2, 3, 4):
        denoise, process = gaussian(spec)
        assert bool(ddim(denoise, NOISE, process, eta=1.0, noise=Streams([0])).isfinite().all())


def test_the_names_of_samplers_are_those_of_the_table():
    assert tuple(SAMPLERS) == NAMES
