"""The process: respacing, look-ups, posterior; and what a network's output means."""

import pytest
import torch

from t2i.core.types import Condition
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation, Target
from t2i.diffusion.process import Process


def test_respacing_keeps_alpha_bar_and_the_networks_timesteps() -> None:
    full = Process.from_schedule("cosine")
    kept = full.respace("50")
    assert kept.num_steps == 50
    assert kept.original_num_steps == 1000
    torch.testing.assert_close(
        kept.tables["alpha_bar"], full.tables["alpha_bar"][list(kept.positions)], rtol=1e-9, atol=0
    )
    assert kept.timesteps.tolist() == list(kept.positions)
    assert kept.timesteps.dtype == torch.int64
    twice = kept.respace([0, 10, 49])
    assert twice.positions == (kept.positions[0], kept.positions[10], 999)
    torch.testing.assert_close(twice.tables["alpha_bar"], kept.tables["alpha_bar"][[0, 10, 49]], rtol=1e-7, atol=0)


def test_the_first_steps_are_those_nearest_to_the_data() -> None:
    process = Process.from_schedule("cosine", 4000, rescale_timesteps=True).respace(20)
    first = process.first(6)
    assert first.num_steps == 6
    assert first.timesteps.tolist() == process.timesteps[:6].tolist()
    for name in process.tables.keys() - {"alpha_bar_next"}:
        torch.testing.assert_close(first.tables[name], process.tables[name][:6])
    assert process.first(20).tables["alpha_bar_next"].tolist() == process.tables["alpha_bar_next"].tolist()
    for num_steps in (0, 21):
        with pytest.raises(ValueError, match=f"the first {num_steps} of 20 steps"):
            process.first(num_steps)


def test_rescaled_timesteps_run_to_1000_whatever_the_length() -> None:
    process = Process.from_schedule("cosine", 4000, rescale_timesteps=True).respace("250")
    assert process.timesteps.dtype == torch.float32
    assert process.positions[-1] == 3999
    assert process.timesteps[-1].item() == 999.75
    assert process.timesteps[1].item() == 4.0


def test_one_step_is_possible() -> None:
    process = Process.from_schedule("cosine").respace(1)
    assert process.positions == (999,)
    assert all(bool(table.isfinite().all()) for name, table in process.tables.items())


def test_lookups_agree_for_an_int_and_a_batch() -> None:
    process, x = Process.from_schedule("linear"), torch.zeros(3, 2, 4, 4)
    one, many = process.at("alpha_bar", 500, x), process.at("alpha_bar", torch.tensor([0, 500, 999]), x)
    assert one.shape == (1, 1, 1, 1)
    assert many.shape == (3, 1, 1, 1)
    assert one.dtype == many.dtype == torch.float32
    assert many[1].item() == one.item() == process.tables["alpha_bar"][500].float().item()
    assert process.at("alpha_bar", 5, torch.zeros(3, 8)).shape == (1, 1)
    assert process.time(7, x).tolist() == [7, 7, 7]
    assert process.time(torch.tensor([1, 2, 3]), x).tolist() == [1, 2, 3]


def test_posterior_is_the_product_of_two_gaussians() -> None:
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add, means are weighted by them."""
    process, step = Process.from_schedule("linear"), 400
    x_0, x_t = torch.tensor([[0.3]]), torch.tensor([[-0.8]])
    beta, before = process.betas[step], process.tables["alpha_bar_prev"][step]
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() * x_t / beta + before.sqrt() * x_0 / (1 - before)) / precision
    torch.testing.assert_close(process.posterior_mean(x_0, x_t, step), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(process.tables["posterior_variance"][step], 1 / precision)


def test_bad_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'sigmoid'"):
        Process.from_schedule("sigmoid")
    with pytest.raises(ValueError, match="betas"):
        Process(torch.tensor([0.1, 1.5]))
    with pytest.raises(ValueError, match="3 timesteps up to 9 do not fit 2 betas"):
        Process(torch.tensor([0.1, 0.5]), timesteps=[0, 1, 9], original_num_steps=10)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 16)])
def test_a_perfect_network_gives_back_x_0_and_eps(target: Target, shape: tuple[int, ...]) -> None:
    process, parametrisation = Process.from_schedule("linear"), Parametrisation(target, "fixed_small")
    x_0, noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1), torch.randn(shape)
    step = torch.tensor([0, 100, 500, 900])
    x_t = process.q_sample(x_0, step, noise)
    p = parametrisation.predict(process, parametrisation.target_of(process, x_0, noise, step), x_t, step)
    torch.testing.assert_close(p.x_0, x_0, atol=1e-3, rtol=0)
    torch.testing.assert_close(p.eps[1:], noise[1:], atol=1e-3, rtol=0)  # at step 0 x_t hardly knows eps
    torch.testing.assert_close(process.q_sample(p.x_0, step, p.eps), x_t, atol=1e-4, rtol=0)


def test_processing_comes_before_clipping_and_eps_follows() -> None:
    process, parametrisation = Process.from_schedule("linear"), Parametrisation("x0", "fixed_small")
    x_t, raw = torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.2, 0.6, -7.0]]]])
    p = parametrisation.predict(process, raw, x_t, 300, clamp=1.0, processed=lambda x: 2 * x)
    assert p.x_0.flatten().tolist() == pytest.approx([0.4, 1.0, -1.0])
    torch.testing.assert_close(process.q_sample(p.x_0, 300, p.eps), x_t)
    assert parametrisation.predict(process, raw, x_t, 300, clamp=5).x_0.min().item() == -5
    assert parametrisation.predict(process, raw, x_t, 300, clamp=None).x_0.min().item() == -7


def test_learned_variance_spans_the_posteriors_and_beta() -> None:
    process, parametrisation = Process.from_schedule("cosine"), Parametrisation("eps", "learned_range")
    x = torch.zeros(1, 1, 1, 3)
    raw = torch.cat([x, torch.tensor([[[[-1.0, 0.0, 1.0]]]])], dim=1)
    low, middle, high = parametrisation.predict(process, raw, x, 500).log_variance.flatten().tolist()
    assert low == pytest.approx(process.tables["posterior_log_variance"][500].item())
    assert high == pytest.approx(process.tables["log_betas"][500].item())
    assert middle == pytest.approx((low + high) / 2)
    assert parametrisation.num_outputs(3) == 6
    assert Parametrisation("v", "fixed_large").num_outputs(3) == 3


def test_channels_that_do_not_fit_are_named() -> None:
    process, x = Process.from_schedule("linear"), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"puts out 3 channels.*needs 6"):
        Parametrisation("eps", "learned_range").predict(process, x, x, 0)
    with pytest.raises(ValueError, match="unknown target 'score'"):
        Parametrisation("score")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown variance 'learned'"):
        Parametrisation("eps", "learned")  # type: ignore[arg-type]


def test_a_denoiser_shows_the_network_original_timesteps_and_its_condition() -> None:
    seen = []
    process = Process.from_schedule("cosine").respace(5)
    condition = Condition(vector=torch.ones(2, 4))

    def model(x_t: torch.Tensor, t: torch.Tensor, given: Condition) -> torch.Tensor:
        seen.append((t.tolist(), given is condition))
        return x_t.bfloat16()

    denoise = ModelDenoiser(model, condition, process, Parametrisation("eps", "fixed_small"))
    prediction = denoise(torch.ones(2, 3, 2, 2), 3)
    assert seen == [([749, 749], True)]
    assert all(part.dtype == torch.float32 for part in prediction)


def test_tables_first_used_in_inference_mode_still_train() -> None:
    with torch.inference_mode():
        process, x = Process.from_schedule("cosine"), torch.ones(2, 1, 2, 2)
        process.q_sample(x, 5, x)
    raw = torch.ones(2, 1, 2, 2, requires_grad=True)
    form = Parametrisation("eps", "fixed_small")
    form.predict(process, raw, torch.ones(2, 1, 2, 2), torch.tensor([3, 4])).x_0.sum().backward()
    assert raw.grad is not None
