"""Losses in closed form: bounds of known Gaussians, where gradients go, weights."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from t2i.diffusion.losses import (
    LossKind,
    Objective,
    Weighting,
    discretised_log_likelihood,
    gaussian_kl,
    snr_weight,
    training_losses,
    variational_bound,
)
from t2i.diffusion.prediction import Parametrisation, Target
from t2i.diffusion.process import Process

IDDPM = Parametrisation("eps", "learned_range")
PROCESS = Process.from_schedule("cosine", 400)
STEP = torch.tensor([0, 7, 200, 399])


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(0, 256, (4, 3, 4, 4), generator=generator) / 127.5 - 1
    noise = torch.randn(4, 3, 4, 4, generator=generator)
    return x_0, PROCESS.q_sample(x_0, STEP, noise), noise


def test_kl_against_torch() -> None:
    mean_q, log_q, mean_p, log_p = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).double()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean_q, (log_q / 2).exp()), normal(mean_p, (log_p / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean_q, log_q, mean_p, log_p), expected)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.3), (-0.9, 0.2), (1.4, 0.5)])
def test_the_bins_of_a_picture_share_all_probability(mean: float, scale: float) -> None:
    levels = torch.arange(256) / 127.5 - 1
    mass = discretised_log_likelihood(levels, torch.tensor(mean), torch.tensor(scale).log()).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    exact = torch.distributions.Normal(mean, scale)
    assert mass[100].item() == pytest.approx(
        (exact.cdf(levels[100] + 1 / 255) - exact.cdf(levels[100] - 1 / 255)).item(), abs=1e-4
    )


def test_bound_of_a_perfect_prediction_vanishes() -> None:
    """With eps known and the posterior's variance (v = -1), every term but the first is zero."""
    x_0, x_t, noise = batch()
    raw = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    bound = variational_bound(PROCESS, IDDPM, raw, x_0, x_t, STEP)
    assert bound[1:].abs().max().item() < 1e-4
    assert 0 < bound[0].item() < 2


def test_bound_at_step_0_is_a_likelihood_in_bits() -> None:
    """A hopeless mean with beta's tiny variance costs the clamped 1e-12 in almost every pixel: log2(1e12) bits."""
    x_0 = torch.full((1, 3, 4, 4), 0.5)
    step = torch.tensor([0])
    x_t = PROCESS.q_sample(x_0, step, torch.zeros_like(x_0))
    raw = torch.cat([torch.full_like(x_0, 200.0), torch.ones_like(x_0)], dim=1)
    assert variational_bound(PROCESS, IDDPM, raw, x_0, x_t, step).item() == pytest.approx(12 / math.log10(2), rel=1e-4)


def test_kinds_combine_the_same_two_terms() -> None:
    x_0, x_t, noise = batch()
    raw = 0.5 * torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    got = {
        kind: training_losses(PROCESS, IDDPM, raw, x_0, x_t, noise, STEP, objective=Objective(kind=kind))  # type: ignore[arg-type]
        for kind in get_args(LossKind)
    }
    mse, vb = got["mse"]["mse"], got["kl"]["vb"]
    torch.testing.assert_close(mse, (raw[:, :3] - noise).square().mean((1, 2, 3)))
    expected = {
        "simple": mse,
        "mse": mse + vb,
        "hybrid": mse + 0.4 * vb,
        "rescaled_mse": mse + 0.4 * vb,
        "kl": vb,
        "vlb": vb,
        "rescaled_kl": 400 * vb,
    }
    for kind, loss in expected.items():
        assert got[kind]["loss"].shape == (4,)
        torch.testing.assert_close(got[kind]["loss"], loss, msg=kind)
    assert set(got["simple"]) == {"loss", "mse"}


@pytest.mark.parametrize("kind", ["hybrid", "mse"])
def test_the_bound_does_not_train_the_mean(kind: str) -> None:
    x_0, x_t, noise = batch()
    raw = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = training_losses(PROCESS, IDDPM, raw, x_0, x_t, noise, STEP, objective=Objective(kind=kind))  # type: ignore[arg-type]
    (from_bound,) = torch.autograd.grad(losses["vb"].sum(), raw, retain_graph=True)
    (from_mse,) = torch.autograd.grad(losses["mse"].sum(), raw, retain_graph=True)
    assert from_bound[:, :3].abs().max().item() == 0
    assert from_bound[:, 3:].flatten(1).abs().amax(1).min().item() > 0
    assert from_mse[:, 3:].abs().max().item() == 0
    (whole,) = torch.autograd.grad(
        training_losses(PROCESS, IDDPM, raw, x_0, x_t, noise, STEP, objective=Objective(kind="vlb"))["loss"].sum(), raw
    )
    assert whole[:, :3].flatten(1).abs().amax(1).min().item() > 0
    assert bool(whole.isfinite().all())


def test_a_fixed_variance_leaves_the_bound_out() -> None:
    x_0, x_t, noise = batch()
    fixed = Parametrisation("eps", "fixed_large")
    losses = training_losses(PROCESS, fixed, torch.zeros_like(noise), x_0, x_t, noise, STEP, objective=Objective())
    assert set(losses) == {"loss", "mse"}
    assert "vb" in training_losses(
        PROCESS, fixed, torch.zeros_like(noise), x_0, x_t, noise, STEP, objective=Objective(kind="vlb")
    )


@pytest.mark.parametrize(("weighting", "lowest"), [("min_snr", 0.0), ("clamped_snr", 1.0)])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_snr_is_the_same_weight_of_x_0_for_every_target(target: Target, weighting: Weighting, lowest: float) -> None:
    """One error in x_0 costs the clamped SNR times its square, whatever the network predicts."""
    x_0, x_t, noise = batch()
    form = Parametrisation(target, "fixed_small")
    wrong = x_0 + 0.01
    step = torch.tensor([40, 100, 200, 300])
    x_t = PROCESS.q_sample(x_0, step, noise)
    signal, sigma = PROCESS.at("sqrt_alpha_bar", step, x_0), PROCESS.at("sqrt_one_minus_alpha_bar", step, x_0)
    eps = (x_t - signal * wrong) / sigma
    raw = {"eps": eps, "x0": wrong, "v": signal * eps - sigma * wrong}[target]
    losses = training_losses(
        PROCESS, form, raw, x_0, x_t, noise, step, objective=Objective(kind="simple", weighting=weighting)
    )
    snr = PROCESS.snr[step]
    assert snr.max() > 5
    assert snr.min() < 1
    torch.testing.assert_close(losses["loss"], 1e-4 * snr.clamp(lowest, 5).float(), rtol=1e-2, atol=0)
    weight = snr_weight(PROCESS, form, step, x_0, weighting)
    torch.testing.assert_close(losses["loss"], weight * losses["mse"])


def test_the_bound_can_be_weighed_down_beside_mse() -> None:
    x_0, x_t, noise = batch()
    raw = 0.5 * torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    light = training_losses(PROCESS, IDDPM, raw, x_0, x_t, noise, STEP, objective=Objective(kind="mse", vb_weight=0.25))
    torch.testing.assert_close(light["loss"], light["mse"] + 0.25 * light["vb"])


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"kind\n.*'l1'"):
        Objective(kind="l1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weighting\n.*'snr'"):
        Objective(weighting="snr")  # type: ignore[arg-type]
