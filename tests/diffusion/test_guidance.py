"""Guidance as a denoiser: what it computes, when it is skipped, and what a guided Gaussian must become."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition, Prediction
from t2i.diffusion.guidance import ClassifierFree, input_gradient, score_guided
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation, x_0_from_eps
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddim, ddpm
from t2i.diffusion.sampling import Hooks

PROCESS = Process.from_schedule("cosine").respace(10)
IDDPM = Parametrisation("eps", "learned_range")
X = Streams([1, 2]).normal(3, 4, 4)


class Network:
    """Output depends on the condition's vector; counts its passes and rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        assert len(x) == len(t) == len(condition.vector)
        self.rows.append(len(x))
        shift = condition.vector.reshape(-1, *[1] * (x.ndim - 1))
        return torch.cat([0.5 * x + shift, torch.tanh(x) * shift], dim=1)


def guide(scale: float, **changes: object) -> tuple[ClassifierFree, Network]:
    network = Network()
    given, null = Condition(vector=torch.full((2, 1), 0.3)), Condition(vector=torch.full((2, 1), -0.1))
    denoise = ClassifierFree(network, given, null, PROCESS, IDDPM, scale, clamp=None)
    return replace(denoise, **changes), network  # type: ignore[arg-type]


def plain(network: Network, vector: float) -> ModelDenoiser:
    return ModelDenoiser(network, Condition(vector=torch.full((2, 1), vector)), PROCESS, IDDPM, clamp=None)


def same(a: Prediction, b: Prediction) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("batch", ["doubled", "split"])
def test_the_target_is_extrapolated_and_the_variance_is_not(batch: str) -> None:
    denoise, network = guide(4.0, batch=batch)
    got = denoise(X, 5)
    eps = 0.5 * X + (-0.1 + 4.0 * 0.4)
    torch.testing.assert_close(got.x_0, x_0_from_eps(PROCESS, X, eps, 5))
    torch.testing.assert_close(got.log_variance, plain(Network(), 0.3)(X, 5).log_variance)
    assert network.rows == ([4] if batch == "doubled" else [2, 2])


def test_scale_1_is_the_conditional_network_in_one_pass() -> None:
    denoise, network = guide(1.0, null=None)
    same(denoise(X, 5), plain(Network(), 0.3)(X, 5))
    assert network.rows == [2]


def test_scale_0_is_the_unconditional_target() -> None:
    denoise, _ = guide(0.0)
    torch.testing.assert_close(denoise(X, 5).x_0, plain(Network(), -0.1)(X, 5).x_0)


def test_interval_counts_original_timesteps() -> None:
    denoise, network = guide(3.0, interval=(111, 555))
    assert PROCESS.positions == (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)
    for step in range(10):
        denoise(X, step)
    assert network.rows == [2, 4, 4, 4, 4, 4, 2, 2, 2, 2]
    same(denoise(X, 8), plain(Network(), 0.3)(X, 8))
    same(denoise(X, 3), guide(3.0)[0](X, 3))


def test_rescale_restores_the_conditional_deviation() -> None:
    """With phi = 1 each sample's guided eps has the standard deviation of its conditional eps (Lin et al. 2023)."""

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        return condition.vector[:, :, None, None] * x

    form = Parametrisation("eps", "fixed_small")
    ones = torch.ones(2, 1)
    denoise = ClassifierFree(network, Condition(0.8 * ones), Condition(0.5 * ones), PROCESS, form, 5.0, clamp=None)
    stds = [replace(denoise, rescale=phi)(X, 9).eps.std(dim=(1, 2, 3)) for phi in (0.0, 0.5, 1.0)]
    conditional = 0.8 * X.std(dim=(1, 2, 3))
    torch.testing.assert_close(stds[2], conditional, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stds[1], (stds[0] + stds[2]) / 2, rtol=1e-3, atol=1e-4)
    assert bool((stds[0] > 2 * conditional).all())


def test_embeddings_are_guided_like_pictures() -> None:
    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        return x + condition.vector

    x = Streams([1, 2, 3]).normal(16)
    given, null = Condition(vector=torch.ones(3, 16)), Condition(vector=torch.zeros(3, 16))
    form = Parametrisation("x0", "fixed_small")
    for scale in (0.5, 2.0, 7.0):
        guided = ClassifierFree(network, given, null, PROCESS, form, scale, clamp=None, rescale=0.0)
        torch.testing.assert_close(guided(x, 4).x_0, x + scale)


def test_guidance_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale 2\.0 needs an unconditional"):
        guide(2.0, null=None)
    with pytest.raises(ValueError, match="'both'"):
        guide(2.0, batch="both")
    with pytest.raises(ValueError, match="rescale"):
        guide(2.0, rescale=1.5)
    with pytest.raises(ValueError, match="starts at 5"):
        guide(2.0, interval=(5, 1))
    with pytest.raises(ValueError, match="form of guidance 'sde'"):
        score_guided(plain(Network(), 0.0), lambda x, t: x, 1.0, PROCESS, "sde")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["ddpm", "ddim"])
def test_score_guidance_multiplies_the_data_by_the_likelihood(form: str) -> None:
    """Data N(0, 1), so x_t ~ N(0, 1) at every step and E[x_0 | x_t] = signal · x_t. A likelihood exp(0.5 x_0) makes the
    data N(0.5, 1); the exact gradient of its log at x_t is 0.5 · signal."""
    full = Process.from_schedule("cosine")
    process = full.respace(200)

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return full.at("sqrt_alpha_bar", t, x) * x

    denoise = ModelDenoiser(network, Condition(), process, Parametrisation("x0", "fixed_large"), clamp=None)

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        return 0.25 * full.at("sqrt_alpha_bar", t, x).expand_as(x)

    guided = score_guided(denoise, gradient, 2.0, process, form)  # type: ignore[arg-type]
    x_T = Streams([4]).normal(1, 96, 96)
    out = ddpm(guided, x_T, process, noise=Streams([9])) if form == "ddpm" else ddim(guided, x_T, process)
    assert out.mean().item() == pytest.approx(0.5, abs=0.03)
    assert out.std().item() == pytest.approx(1.0, abs=0.03)


def test_score_guidance_shifts_the_mean_by_variance_times_gradient() -> None:
    denoise = plain(Network(), 0.2)
    gradient = Streams([7, 8]).normal(3, 4, 4)
    for step in (0, 4, 9):
        p, q = denoise(X, step), score_guided(denoise, lambda x, t: gradient, 1.5, PROCESS, "ddpm")(X, step)
        moved = PROCESS.posterior_mean(q.x_0, X, step) - PROCESS.posterior_mean(p.x_0, X, step)
        torch.testing.assert_close(moved, p.log_variance.exp() * 1.5 * gradient, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(q.log_variance, p.log_variance)


def test_gradients_may_be_taken_inside_a_sampler() -> None:
    """Samplers run without gradients; a gradient function turns them on for itself."""

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((-0.5 * x.square()).sum(), x)[0]

    out = ddim(score_guided(plain(Network(), 0.0), gradient, 0.1, PROCESS, "ddim"), X, PROCESS)
    assert not out.requires_grad
    assert bool(out.isfinite().all())


def test_gradients_are_those_of_the_input_wherever_they_are_asked_for() -> None:
    weight = torch.ones(4, requires_grad=True)
    want = 2 * X * torch.tensor([3.0, 5.0])[:, None, None, None]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), torch.autocast("cpu", torch.bfloat16):
            x, factor = X.clone(), torch.tensor([3.0, 5.0])
            got = input_gradient(lambda x, a: a * ((weight * x) @ weight.diag() * x).sum((1, 2, 3)), x, factor)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want)
        assert not x.requires_grad
        assert weight.grad is None
    half = input_gradient(lambda x: x.square().sum((1, 2, 3)), X.bfloat16())
    torch.testing.assert_close(half, 2 * X.bfloat16().float())


@pytest.mark.parametrize("target", ["x0", "v", "eps"])
def test_a_gradient_steers_ddim_from_pure_noise(target: Literal["x0", "v", "eps"]) -> None:
    """The cosine schedule ends at alpha_bar 2e-9, where a gradient moves x_0 by ten thousands: nothing is moved.
    Later x_0 may leave its bounds if the network is of the papers' kind, as theirs does."""
    process = Process.from_schedule("cosine").respace(10)

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(x)

    denoise = ClassifierFree(network, Condition(), None, process, Parametrisation(target, "fixed_large"), 1.0)
    guided = Hooks(gradient=lambda x, t: torch.ones_like(x)).around(denoise, process, "ddim")
    torch.testing.assert_close(guided(X, 9).x_0, denoise(X, 9).x_0)
    by_hand = score_guided(denoise, lambda x, t: torch.ones_like(x), 1.0, process, "ddim")(X, 8)
    assert by_hand.x_0.max() > 1
    torch.testing.assert_close(guided(X, 8).x_0, by_hand.x_0 if target == "eps" else by_hand.x_0.clamp(-1, 1))
