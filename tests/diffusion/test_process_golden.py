"""Chains, losses and bounds of the released samplers with toy networks (`golden/openai_process.json`)."""

from collections.abc import Callable

import pytest
import torch
from golden_tools import Stream, check, load_case, make_input
from torch import Tensor

from t2i.core.types import Condition, Denoiser
from t2i.diffusion.guidance import ClassifierFree, score_guided
from t2i.diffusion.losses import LossKind, Objective, prior_bits, training_losses, variational_bound
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddim, ddim_invert, ddpm
from t2i.nn.layers import timestep_embedding

FILE = "openai_process.json"
TOY = load_case(FILE, "P-toy-process")
LOSSES = load_case(FILE, "P-losses")
SAMPLERS = load_case(FILE, "dev-samplers-toy")
INVERSION = load_case(FILE, "dev-ddim-inversion")
NOTHING = Condition()
IDDPM = Parametrisation("eps", "learned_range")
Model = Callable[[Tensor, Tensor, Condition], Tensor]


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.float().reshape(-1, *[1] * (x.ndim - 1))


def toy(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return torch.cat([0.9 * x + 0.05 * torch.sin(0.01 * column(t, x)), 0.3 * torch.tanh(x)], dim=1)


def toy_gradient(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * torch.cos(3 * x) * column(t, x) / 1000


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_one_step(t: int) -> None:
    process, x = Process.from_schedule("linear"), make_input(TOY["inputs"]["x"])
    p = ModelDenoiser(toy, NOTHING, process, IDDPM)(x, t)
    check(TOY["outputs"][f"linear1000_mean_t{t}"], process.posterior_mean(p.x_0, x, t))
    check(TOY["outputs"][f"linear1000_logvar_t{t}"], p.log_variance)


CHAINS = {
    # name: schedule, spec, sampler, bounded, guided
    "ddim25_linear": ("linear", "ddim25", "ddim", True, False),
    "ddim25_linear_noclip": ("linear", "ddim25", "ddim", False, False),
    "ddim_cosine100": ("cosine", "100", "ddim", True, False),
    "ddim25_linear_cond": ("linear", "ddim25", "ddim", True, True),
    "ancestral_cosine50": ("cosine", "50", "ddpm", True, False),
    "ancestral_cosine50_cond": ("cosine", "50", "ddpm", True, True),
    "ddim_eta1_linear50": ("linear", "50", "ddim1", True, False),
    "ddim_reverse_linear_ddim25": ("linear", "ddim25", "invert", True, False),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str) -> None:
    schedule, spec, sampler, bounded, guided = CHAINS[name]
    process = Process.from_schedule(schedule).respace(spec)
    x, noise = make_input(TOY["inputs"]["x"]), make_input(TOY["inputs"]["step_noise"]).of(2)
    denoise: Denoiser = ModelDenoiser(toy, NOTHING, process, IDDPM, clamp=1.0 if bounded else None)
    if guided:
        denoise = score_guided(denoise, toy_gradient, 1.0, process, "ddpm" if sampler == "ddpm" else "ddim")
    if sampler == "ddpm":
        out = ddpm(denoise, x, process, noise=noise)
    elif sampler == "invert":
        out = ddim_invert(denoise, x.clamp(-1, 1), process, to_noise=True)
    else:
        out = ddim(denoise, x, process, eta=float(sampler == "ddim1"), noise=noise)
    check(TOY["outputs"][name], out)
    assert (noise.num_draws > 0) == (sampler in ("ddpm", "ddim1"))


def noised(process: Process, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_0, noise = make_input(LOSSES["inputs"]["x0"]), make_input(LOSSES["inputs"]["noise"])
    x_t = process.q_sample(x_0, step, noise)
    return toy(x_t, process.time(step, x_t), NOTHING), x_0, x_t, noise


LOSS_OUTPUTS = {
    "vb": ("mse", "vb"),
    "mse": ("mse", "mse"),
    "loss_MSE": ("mse", "loss"),
    "loss_RESCALED_MSE": ("hybrid", "loss"),
    "loss_RESCALED_KL": ("rescaled_kl", "loss"),
}


@pytest.mark.parametrize("name", LOSS_OUTPUTS)
def test_training_losses(name: str) -> None:
    kind, part = LOSS_OUTPUTS[name]
    process, step = Process.from_schedule("cosine", 4000, rescale_timesteps=True), make_input(LOSSES["inputs"]["t"])
    raw, x_0, x_t, noise = noised(process, step)
    loss_kind: LossKind = kind  # type: ignore[assignment]
    check(
        LOSSES["outputs"][name],
        training_losses(process, IDDPM, raw, x_0, x_t, noise, step, objective=Objective(kind=loss_kind))[part],
    )


def test_evaluation_bound() -> None:
    process, step = Process.from_schedule("linear"), torch.tensor([0, 500])
    raw, x_0, x_t, _ = noised(process, step)
    bound = variational_bound(process, IDDPM, raw, x_0, x_t, step, clamp=1.0)
    check(LOSSES["outputs"]["vb_clipped_linear1000_t0_t500"], bound)
    check(LOSSES["outputs"]["prior_bpd_linear1000"], prior_bits(process, x_0))
    check(LOSSES["outputs"]["prior_bpd_cosine4000"], prior_bits(Process.from_schedule("cosine", 4000), x_0))


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_fixed_variances(variance: str) -> None:
    process, x = Process.from_schedule("linear"), torch.zeros(2, 3, 4, 4)
    parametrisation = Parametrisation("eps", variance)  # type: ignore[arg-type]
    log_variance = parametrisation.predict(process, x, x, torch.tensor([0, 500])).log_variance
    check(LOSSES["outputs"][f"{variance}_logvar_t0_t500"], log_variance.flatten())


TIMES = {
    # name: timesteps, order, shift of the denominator
    "timestep_embedding_w8_t_0_1_500_999": ([0.0, 1.0, 500.0, 999.0], "cos_sin", 0),
    "timestep_embedding_w8_t_250.75": ([250.75], "cos_sin", 0),
    "ddpm_timestep_embedding_w8_t_0_1_500_999": ([0.0, 1.0, 500.0, 999.0], "sin_cos", 1),
}


@pytest.mark.parametrize("name", TIMES)
def test_timestep_embeddings(name: str) -> None:
    times, order, shift = TIMES[name]
    embedding = timestep_embedding(torch.tensor(times), 8, order=order, denominator_shift=shift)  # type: ignore[arg-type]
    check(LOSSES["outputs"][name], embedding)


# unCLIP's chains: classifier-free guidance on x_0 (prior) and on eps (decoder); null is marked by a zero vector

A, B = SAMPLERS["config"]["a"], SAMPLERS["config"]["b"]


def prior(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    assert condition.vector is not None
    given = A * torch.tanh(0.7 * x) + 2 * torch.sin(0.01 * column(t, x))
    return torch.where(condition.vector > 0, given, 0.5 * A * torch.tanh(0.5 * x) - 1)


def decoder(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    assert condition.vector is not None
    given = torch.cat([B * x + 0.1 * torch.sin(0.01 * column(t, x)), 0.8 * torch.tanh(x)], dim=1)
    null = torch.cat([0.6 * x - 0.2, 0.3 * torch.cos(x) - 0.5], dim=1)
    return torch.where(condition.vector[:, :, None, None] > 0, given, null)


def unclip(
    model: Model, spec: str, scale: float, form: Parametrisation, clip: float, batch: str = "doubled"
) -> ClassifierFree:
    process = Process.from_schedule("cosine").respace(spec)
    given, null = Condition(vector=torch.ones(2, 1)), Condition(vector=torch.zeros(2, 1))
    return ClassifierFree(model, given, null, process, form, scale, clip, batch=batch)  # type: ignore[arg-type]


class Recorder:
    """A callback that keeps the state before the last step."""

    before_last: Tensor

    def __call__(self, done: int, num_steps: int, x: Tensor, prediction: object) -> None:
        if done == num_steps - 1:
            self.before_last = x


def replay(name: str, denoise: Denoiser, process: Process, noise: Stream, shape: tuple[int, ...]) -> None:
    recorder = Recorder()
    out = ddpm(denoise, noise.of(2).normal(*shape), process, noise=noise, callback=recorder)
    check(SAMPLERS["outputs"][f"{name}_before_last_step"], recorder.before_last, f"{name} before the last step")
    check(SAMPLERS["outputs"][name], out, name)


@pytest.mark.parametrize(("name", "clip"), [("karlo_prior", 10.0), ("unclip_prior", 5.0)])
def test_prior_chain(name: str, clip: float) -> None:
    denoise = unclip(prior, "5", SAMPLERS["config"]["prior_scale"], Parametrisation("x0", "fixed_small"), clip)
    assert denoise.process.timesteps.tolist() == SAMPLERS["facts"]["prior_timesteps"][::-1]
    replay(name, denoise, denoise.process, make_input(SAMPLERS["inputs"]["prior_noise"]), (16,))


@pytest.mark.parametrize("batch", ["doubled", "split"])
@pytest.mark.parametrize("name", ["karlo_decoder", "unclip_decoder"])
def test_decoder_chain(name: str, batch: str) -> None:
    denoise = unclip(decoder, "4", SAMPLERS["config"]["decoder_scale"], IDDPM, 1.0, batch)
    replay(name, denoise, denoise.process, make_input(SAMPLERS["inputs"]["decoder_noise"]), (3, 4, 4))


def test_decoder_chain_by_ddim() -> None:
    denoise = unclip(decoder, "ddim10", SAMPLERS["config"]["decoder_scale"], IDDPM, 1.0)
    x_T = make_input(SAMPLERS["inputs"]["decoder_noise"]).of(2).normal(3, 4, 4)
    check(SAMPLERS["outputs"]["karlo_decoder_ddim"], ddim(denoise, x_T, denoise.process))


def test_upsampler_chain_with_two_networks() -> None:
    low_res = make_input(SAMPLERS["inputs"]["low_res"])

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        first = B * x + 0.3 * low_res * torch.sin(0.01 * column(t, x))
        return torch.where(column(t, x) > 0, first, 0.5 * x + 0.6 * low_res)

    process = Process.from_schedule("cosine").respace("7")
    denoise = ModelDenoiser(network, NOTHING, process, Parametrisation("eps", "fixed_small"))
    replay("karlo_sr", denoise, process, make_input(SAMPLERS["inputs"]["sr_noise"]), (3, 4, 4))


def test_inversion_reconstruction_and_variation() -> None:
    full, given = Process.from_schedule("cosine"), INVERSION["inputs"]
    mu, spread, kappa = make_input(given["mu"]), INVERSION["config"]["s2"], INVERSION["config"]["kappa"]
    x_0 = make_input(given["x0"]) + mu

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha_bar = full.at("alpha_bar", t, x)
        best = (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * mu) / (alpha_bar * spread + 1 - alpha_bar)
        return best + kappa * (alpha_bar * (1 - alpha_bar)).sqrt() * torch.sin(2 * x)

    process = full.respace(INVERSION["config"]["respacing"])
    denoise = ModelDenoiser(network, NOTHING, process, Parametrisation("eps", "fixed_small"), clamp=None)
    x_T = ddim_invert(denoise, x_0, process)
    check(INVERSION["outputs"]["x_T"], x_T, "x_T")
    back = ddim(denoise, x_T, process)
    check(INVERSION["outputs"]["reconstruction"], back, "reconstruction")
    assert (back - x_0).abs().max().item() == pytest.approx(
        INVERSION["facts"]["reconstruction_max_abs_error"], abs=1e-3
    )
    varied = ddim(denoise, x_T, process, eta=0.5, noise=make_input(given["noise_eta_0.5"]).of(2))
    check(INVERSION["outputs"]["variation_eta_0.5"], varied, "variation")
