"""The whole bound: against what Gaussian data must cost, against the parts it is made of, and released values."""

import math

import pytest
import torch
from golden_tools import check, load_case, make_input
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition
from t2i.diffusion.likelihood import bits_per_dim
from t2i.diffusion.losses import prior_bits, variational_bound
from t2i.diffusion.prediction import Parametrisation, Variance
from t2i.diffusion.process import Process

NOTHING = Condition()
FULL = Process.from_schedule("cosine", 200)
SPREAD = 0.25


def pictures(num: int, side: int) -> Tensor:
    """Gaussian pixels of 256 levels."""
    x = SPREAD * Streams(list(range(num))).normal(3, side, side)
    return (((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1).float()


class Exact:
    """What Bayes says of x_0 ~ N(0, SPREAD²): E[x_0 | x_t] and, as learned channels, the variance of x_{t-1} | x_t,
    which is (∂mean/∂x_0)² Var[x_0 | x_t] beside the posterior's."""

    def __init__(self, process: Process) -> None:
        table = process.tables
        signal, noise = SPREAD**2 * table["alpha_bar"], 1 - table["alpha_bar"]
        self.slope = table["sqrt_alpha_bar"] * SPREAD**2 / (signal + noise)
        self.left = SPREAD**2 * noise / (signal + noise)  # Var[x_0 | x_t]
        variance = table["posterior_variance"] + table["posterior_x_0"] ** 2 * self.left
        small = table["posterior_log_variance"]
        self.channel = 2 * (variance.log() - small) / (table["log_betas"] - small) - 1
        self.step = {position: step for step, position in enumerate(process.positions)}

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        step = self.step[int(t[0])]
        return torch.cat([self.slope[step] * x, self.channel[step].expand_as(x)], dim=1)


@pytest.mark.parametrize("spec", [200, 10])
def test_the_bound_of_an_exact_model_is_the_entropy_of_the_data(spec: int) -> None:
    """The steps back are Gaussian for Gaussian data, so that nothing is lost, however few they are."""
    process, x_0 = FULL.respace(spec), pictures(4, 40)
    bits = bits_per_dim(
        Exact(process), NOTHING, process, Parametrisation("x0", "learned_range"), x_0, Streams(range(4))
    )
    assert [tuple(b.shape) for b in bits] == [(4,), (4,), (4, spec), (4, spec), (4, spec)]
    levels = torch.arange(256) / 127.5 - 1
    p = torch.softmax(-0.5 * (levels / SPREAD).double().square(), 0)
    entropy = -(p * p.log2()).sum().item()
    assert bits.total.mean().item() == pytest.approx(entropy, abs=0.02)


def test_a_term_of_fixed_variance_pays_for_what_is_not_known_of_x_0() -> None:
    """½ (∂mean/∂x_0)² Var[x_0 | x_t] / variance nats."""
    exact, x_0, form = Exact(FULL), pictures(4, 40), Parametrisation("x0", "fixed_small")

    def mean(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return exact(x, t, condition)[:, :3]

    bits = bits_per_dim(mean, NOTHING, FULL, form, x_0, Streams([7, 8, 9, 10]))
    slope, variance = FULL.tables["posterior_x_0"], FULL.tables["posterior_variance"]
    expected = (0.5 * slope**2 * exact.left / variance / math.log(2))[1:].float()
    torch.testing.assert_close(bits.vb.mean(0)[1:], expected, rtol=0.05, atol=1e-5)
    torch.testing.assert_close(bits.x_0_mse.mean(0)[1:], exact.left[1:].float(), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_whoever_knows_the_noise_pays_for_the_variance_alone(variance: Variance) -> None:
    process, seeds = Process.from_schedule("linear", 50), [3, 4]
    x_0 = pictures(2, 8)

    def knows(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return (x - process.at("sqrt_alpha_bar", t, x) * x_0) / process.at("sqrt_one_minus_alpha_bar", t, x)

    bits = bits_per_dim(knows, NOTHING, process, Parametrisation("eps", variance), x_0, Streams(seeds))
    small, large = process.tables["posterior_log_variance"], process.tables["large_log_variance"]
    ratio = small - (large if variance == "fixed_large" else small)
    expected = (0.5 * (-1 - ratio + ratio.exp()) / math.log(2))[1:].float()
    torch.testing.assert_close(bits.vb[:, 1:], expected.expand(2, -1), rtol=1e-3, atol=1e-4)
    assert bits.eps_mse.max() < 1e-6
    assert bits.x_0_mse.max() < 1e-6


def untrained(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return torch.cat([0.9 * x + 0.05 * torch.sin(0.01 * t.float())[:, None, None, None], 0.3 * torch.tanh(x)], dim=1)


def test_the_total_is_the_sum_of_its_terms_and_noise_is_drawn_from_the_last_step_down() -> None:
    process, form = Process.from_schedule("linear").respace(7), Parametrisation("eps", "learned_range")
    x_0 = pictures(3, 4)
    bits = bits_per_dim(untrained, NOTHING, process, form, x_0, Streams([1, 2, 3]))
    assert torch.equal(bits.total, bits.vb.sum(1) + bits.prior)
    assert torch.equal(bits.prior, prior_bits(process, x_0))
    streams = Streams([1, 2, 3])
    for step in range(6, -1, -1):
        noise = streams.normal(3, 4, 4)
        x_t = process.q_sample(x_0, step, noise)
        raw = untrained(x_t, process.time(step, x_t), NOTHING)
        p = form.predict(process, raw, x_t, step)
        torch.testing.assert_close(
            bits.vb[:, step], variational_bound(process, form, raw, x_0, x_t, torch.full((3,), step), clamp=1.0)
        )
        torch.testing.assert_close(bits.eps_mse[:, step], (p.eps - noise).square().mean((1, 2, 3)))
        torch.testing.assert_close(bits.x_0_mse[:, step], (p.x_0 - x_0).square().mean((1, 2, 3)))
    alone = bits_per_dim(untrained, NOTHING, process, form, x_0[1:2], Streams([2]))
    torch.testing.assert_close(alone.total, bits.total[1:2])
    assert (
        bits_per_dim(untrained, NOTHING, process, form, x_0, Streams([1, 2, 3]), clamp=None).total[0] != bits.total[0]
    )


class Repeated:
    """One noise at every step."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        return self.noise


def test_terms_of_the_released_evaluation() -> None:
    case = load_case("openai_process.json", "P-losses")
    x_0, noise = make_input(case["inputs"]["x0"]), make_input(case["inputs"]["noise"])
    process, form = Process.from_schedule("linear").first(501), Parametrisation("eps", "learned_range")
    bits = bits_per_dim(untrained, NOTHING, process, form, x_0, Repeated(noise))
    check(case["outputs"]["vb_clipped_linear1000_t0_t500"], torch.stack([bits.vb[0, 0], bits.vb[1, 500]]))
