"""Analytic variances: what Gaussian data must have, what few steps make of them, and a prior from end to end."""

from pathlib import Path

import pytest
import torch
from conftest import small_clip, small_prior, with_diffusion
from golden_tools import check, load_case
from torch import Tensor

from t2i.cli import main as cli
from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import Condition
from t2i.diffusion import analytic
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation, Variance
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddpm
from t2i.diffusion.sampling import Sampling
from t2i.evals import prior as embeddings
from t2i.evals.calibrate import calibrate
from t2i.io.weights import load_tensors
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import train
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.sample import sample
from t2i.stages.prior.task import PriorTask
from t2i.stages.registry import load_stage, save_stage

NOTHING = Condition()
MEAN, SPREAD = 0.7, 0.4
SCHEDULES = [Process.from_schedule("cosine"), Process.from_schedule("linear")]


def left(process: Process) -> Tensor:
    """Var[x_0 | x_n] of x_0 ~ N(MEAN, SPREAD²), (T,) float64, by Bayes."""
    alpha_bar = process.tables["alpha_bar"]
    return SPREAD**2 * (1 - alpha_bar) / (alpha_bar * SPREAD**2 + 1 - alpha_bar)


def exact(process: Process, variance: Variance | str, v: Tensor | None = None) -> ModelDenoiser:
    """The eps of that data, E[noise | x_n], as a denoiser on a trajectory."""
    alpha_bar = process.tables["alpha_bar"].float()
    slope = (1 - alpha_bar).sqrt() / (alpha_bar * SPREAD**2 + 1 - alpha_bar)
    step_of = {position: step for step, position in enumerate(process.positions)}

    def eps(x: Tensor, t: Tensor, _: Condition) -> Tensor:
        step = step_of[int(t[0])]
        return slope[step] * (x - alpha_bar[step].sqrt() * MEAN)

    return ModelDenoiser(eps, NOTHING, process, Parametrisation("eps", variance, v), clamp=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("process", SCHEDULES, ids=["cosine", "linear"])
@pytest.mark.parametrize("spec", [1000, 8, "10,10,3,2,2", [5, 300, 301, 999]])
def test_variances_of_gaussian_data_are_those_of_bayes(process: Process, spec: int | str | list[int]) -> None:
    """x_{n-1} given x_n is Gaussian then, of variance beta_n Var[x_{n-1}] / Var[x_n]; and by the paper's own formula,
    from Gamma, with alpha_n = alpha_bar_n / alpha_bar_{n-1}."""
    few, v = process.respace(spec), left(process)
    alpha_bar, before = few.tables["alpha_bar"], few.tables["alpha_bar_prev"]
    parametrisation = Parametrisation("eps", "analytic", v.float())
    x = torch.zeros(2, 5)
    ours = [parametrisation.log_variance(few, None, x, step) for step in range(few.num_steps)]
    assert {tuple(row.shape) for row in ours} == {(1, 1)}
    variance = torch.cat(ours).flatten().double().exp()
    spread, spread_before = (a * SPREAD**2 + 1 - a for a in (alpha_bar, before))
    torch.testing.assert_close(variance, few.betas * spread_before / spread, atol=1e-6, rtol=1e-5)

    gamma = (1 - alpha_bar) / spread  # E |eps|² / d
    posterior = few.tables["posterior_variance"]
    factor = ((1 - alpha_bar) * before / alpha_bar).sqrt() - (1 - before - posterior).clamp(min=0).sqrt()
    formula = posterior + factor.square() * (1 - gamma)
    seen = alpha_bar > 1e-6  # beyond, 1 - gamma has no digits left even in float64 times the factor
    torch.testing.assert_close(variance[seen], formula[seen], atol=1e-6, rtol=1e-5)

    steps = torch.tensor([few.num_steps - 1, 0])
    torch.testing.assert_close(parametrisation.log_variance(few, None, x, steps)[:, 0], torch.cat(ours)[steps, 0])


def test_what_is_measured_is_what_bayes_leaves() -> None:
    process = Process.from_schedule("cosine", 40)
    x_0 = MEAN + SPREAD * Streams(range(200)).normal(64)
    errors = analytic.squared_errors(exact(process, "fixed_small"), process, x_0, Streams(range(200), "noise"))
    assert errors.shape == (200, 40)
    v = analytic.measured(errors, bound=SPREAD**2)
    torch.testing.assert_close(v, left(process).float(), rtol=0.05, atol=0)
    assert (analytic.measured(errors, bound=0.1) <= 0.1 + 1e-9).all()
    again = analytic.squared_errors(exact(process, "fixed_small"), process, x_0[:3], Streams(range(3), "noise"))
    torch.testing.assert_close(again, errors[:3])


def test_closed_forms_of_gaussian_data() -> None:
    """And the paper's bounds: nothing is known of x_0, all is, and data lies in [-1, 1].

    Of this case's outputs those of DDIM's own variance (lambda 0), which no sampler here takes, and of Gamma, which is
    neither kept nor measured here, are left out.
    """
    case = load_case("unclip_math.json", "dev-analytic-dpm")
    full, outputs, config = Process.from_schedule("cosine"), case["outputs"], case["config"]
    few, alpha_bar = full.respace(config["respacing"]), full.tables["alpha_bar"]
    assert list(few.positions) == case["facts"]["kept_timesteps"]
    spread = {"isotropic": [config["s2_isotropic"]], "diagonal": config["s2_diagonal"]}
    known = {
        f"variance_ddpm_{name}": torch.stack([s * (1 - alpha_bar) / (alpha_bar * s + 1 - alpha_bar) for s in s2]).mean(
            0
        )
        for name, s2 in spread.items()
    } | {
        "lower_bound_ddpm": torch.zeros_like(alpha_bar),
        "upper_bound_ddpm": (1 - alpha_bar) / alpha_bar,
        "upper_bound_bounded_data_ddpm": torch.ones_like(alpha_bar),
    }
    for name, v in known.items():
        x_t = torch.zeros(1, 1, dtype=torch.float64)
        logs = [analytic.log_variance(few, v, x_t, step) for step in range(few.num_steps)]
        check(outputs[name], torch.cat(logs).flatten().exp(), name)


def test_variances_stay_within_the_bounds_of_the_paper() -> None:
    """For data in [-1, 1]: from lambda² to that and the square of the factor of x_0, whatever is put in."""
    few = SCHEDULES[0].respace(8)
    lower = few.tables["posterior_variance"]
    upper = lower + few.tables["posterior_x_0"].square()
    for error in (0.0, 0.3, 50.0):
        v = analytic.measured(torch.full((3, 1000), error, dtype=torch.float64), bound=1.0)
        rows = [analytic.log_variance(few, v, torch.zeros(1), step) for step in range(8)]
        variance = torch.cat(rows).double().exp()
        assert (variance >= lower * (1 - 1e-5)).all()
        assert (variance <= upper * (1 + 1e-5)).all()


def test_few_steps_keep_the_variance_of_the_data() -> None:
    process, few = SCHEDULES[0], SCHEDULES[0].respace(8)
    x_T = Streams(range(500)).normal(64)
    off = {}
    for variance in ("fixed_small", "fixed_large", "analytic"):
        v = left(process).float() if variance == "analytic" else None
        drawn = ddpm(exact(few, variance, v), x_T, few, noise=Streams(range(500), "steps"))
        # The last step draws no noise: what it leaves out is known.
        off[variance] = abs(float(drawn.var() + left(few)[0]) - SPREAD**2)
        assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.01)
    assert off["analytic"] < 0.02 * SPREAD**2
    assert off["analytic"] < 0.1 * min(off["fixed_small"], off["fixed_large"])


def test_the_bound_is_the_entropy_of_gaussian_data_and_no_other_variance_has_a_lower_one() -> None:
    process, few = SCHEDULES[0], SCHEDULES[0].respace(8)
    v = left(process)
    bounds = {
        variance: embeddings.bound(few, left(few), exact(few, variance, given).parametrisation)
        for variance, given in (("fixed_small", None), ("fixed_large", None), ("analytic", v.float()))
    }
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e * SPREAD**2)).item()
    assert bounds["analytic"] == pytest.approx(entropy, abs=1e-4)
    assert bounds["analytic"] < min(bounds["fixed_small"], bounds["fixed_large"]) - 0.01
    for factor in (0.8, 1.25):
        parametrisation = Parametrisation("eps", "analytic", factor * v.float())
        assert embeddings.bound(few, left(few), parametrisation) > bounds["analytic"]


def test_distances_between_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 6, generator=generator)
    b = 2 * torch.randn(4000, 6, generator=generator) + 1
    assert embeddings.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert embeddings.frechet(a, b) == pytest.approx(6 * (1 + 1), rel=0.05)  # |mean|² + (2 - 1)² in each dimension
    assert embeddings.variance_ratio(b, a) == pytest.approx(4, rel=0.05)
    assert embeddings.compare(b, b)["cosine"] == pytest.approx(1)


def test_a_table_is_needed_for_analytic_variances_and_for_no_others() -> None:
    with pytest.raises(ValueError, match="x_0_variance is missing, but variance='analytic'"):
        Parametrisation("x0", "analytic")
    with pytest.raises(ValueError, match="x_0_variance is given, but variance='fixed_small'"):
        Parametrisation("x0", "fixed_small", torch.ones(3))


# -- the prior ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A CLIP and a prior of 20 steps."""
    save_stage(tmp_path / "clip", "clip", small_clip())
    prior = small_prior()
    short = Prior(with_diffusion(prior.config, num_steps=20))
    short.load_state_dict(prior.state_dict())
    save_stage(tmp_path / "prior", "prior", short, dtype=torch.bfloat16)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["t2i", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0  # type: ignore[return-value]


def test_a_prior_is_calibrated_and_draws_by_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, folders: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = ["--clip", folders / "clip", "--num", 6, "--device", "cpu"]
    for name in ("a", "b"):
        assert run(monkeypatch, "calibrate", folders / "prior", *chosen, "--out", folders / name) == 0
    assert "b: a prior with analytic variances, of 6 pictures" in capsys.readouterr().out
    before, a, b = (load_tensors(folders / name) for name in ("prior", "a", "b"))
    assert a.keys() - before.keys() == {"x_0_variance"}
    assert all(torch.equal(a[key], before[key]) for key in before)
    assert torch.equal(a["x_0_variance"], b["x_0_variance"])
    assert a["x_0_variance"].shape == (20,)
    assert ((a["x_0_variance"] > 0) & (a["x_0_variance"] <= 1)).all()

    plain, prior = load_stage(folders / "prior"), load_stage(folders / "a")
    assert isinstance(plain, Prior)
    assert isinstance(prior, Prior)
    text, sampling = small_clip().encode_text(["a red cube", "a cube"]), Sampling(4, "ddpm")
    drawn = sample(prior, text, Streams([1, 2]), sampling)
    assert not torch.allclose(drawn, sample(plain, text, Streams([1, 2]), sampling))
    small = sample(prior, text, Streams([1, 2]), Sampling(4, "ddpm", variance="fixed_small"))
    torch.testing.assert_close(small, sample(plain, text, Streams([1, 2]), sampling))

    assert run(monkeypatch, "calibrate", folders / "prior", *chosen, "--out", folders / "prior") == 0  # in place
    assert torch.equal(load_tensors(folders / "prior")["x_0_variance"], a["x_0_variance"])


def test_a_prior_is_refused_until_it_is_calibrated_and_after_it_has_learned_on() -> None:
    config = with_diffusion(small_prior().config, variance="analytic", num_steps=25)
    prior, clip = Prior(config), small_clip()
    prior.calibrate(torch.randn(9, 16))
    text = clip.encode_text(["a red cube"])
    with pytest.raises(UsageError, match="analytic variances were never measured; do so with t2i calibrate"):
        sample(prior, text, Streams([1]), Sampling(4, "ddpm"))
    batch = {"image": torch.zeros(1, 3, 32, 32), "caption": ["a red cube"], "seed": [1]}
    task = PriorTask(prior, clip=clip)
    assert task.sample(batch).isfinite().all(), "grids are drawn while it is trained"
    assert prior.x_0_variance is not None
    prior.x_0_variance.fill_(0.5)
    assert sample(prior, text, Streams([1]), Sampling(4, "ddpm")).isfinite().all()
    task.prepare([], anew=False)
    assert prior.x_0_variance.isnan().all()


def test_priors_of_fixed_variance_are_as_they_were() -> None:
    assert PriorConfig().diffusion.variance == "fixed_small"
    assert "x_0_variance" not in small_prior().state_dict()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["PRIOR", "--out", "OUT"], 2, "Missing option '--clip'"),
        (["PRIOR", "--clip", "CLIP"], 2, "Missing option '--out'"),
        (["NONE", "--clip", "CLIP", "--out", "OUT"], 3, "none"),
        (["CLIP", "--clip", "CLIP", "--out", "OUT"], 3, "holds stage clip, expected prior"),
        (["PRIOR", "--clip", "PRIOR", "--out", "OUT"], 3, "holds stage prior, expected clip"),
        (["PRIOR", "--clip", "CLIP", "--out", "OUT", "--num", "0"], 2, "'--num'"),
        (["PRIOR", "--clip", "CLIP", "--out", "OUT", "--data", "no/such/folder"], 3, "no/such/folder"),
        (["PRIOR", "--clip", "CLIP", "--out", "FILE"], 2, "is a file, expected a folder"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, folders: Path, capsys: pytest.CaptureFixture,
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    (folders / "file").write_text("")
    places = {name.upper(): folders / name for name in ("prior", "clip", "none", "out", "file")}
    assert run(monkeypatch, "calibrate", *(places.get(a, a) for a in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not places["OUT"].exists()


def test_a_prior_without_statistics_is_not_calibrated(folders: Path) -> None:
    save_stage(folders / "new", "prior", Prior(small_prior().config))
    with pytest.raises(DataError, match="no CLIP statistics"):
        calibrate(str(folders / "new"), str(folders / "clip"), folders / "out", num=2, device="cpu")


def test_variances_are_compared_on_held_out_captions(
    monkeypatch: pytest.MonkeyPatch, folders: Path, capsys: pytest.CaptureFixture
) -> None:
    stages, settings = {"clip": folders / "clip", "prior": folders / "prior"}, {"steps": {"prior": 3}}
    DALLE2.assemble(stages, settings).save_pretrained(folders / "fixed")
    report = embeddings.prior(str(folders / "fixed"), num=4, steps=3, device="cpu")
    assert report.facts["steps"] == [0, 10, 19]
    assert list(report.facts["rows"]) == ["other pictures", "fixed_small", "fixed_large"]
    assert report.text.endswith("t2i calibrate does that")
    chosen = ["--clip", folders / "clip", "--num", 4, "--device", "cpu", "--out", folders / "prior"]
    assert run(monkeypatch, "calibrate", folders / "prior", *chosen) == 0
    DALLE2.assemble(stages, settings).save_pretrained(folders / "model")
    wanted = ["eval", "prior", "--model", folders / "model", "--num", 4, "--steps", 3, "--device", "cpu"]
    capsys.readouterr()
    assert run(monkeypatch, *wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 steps, 4 held-out pictures of shapes"
    assert [line.split()[0] for line in lines[2:]] == ["other", "fixed_small", "fixed_large", "analytic"]
    bounds = {row: float(line.split()[-1]) for line in lines[3:] for row in line.split()[:1]}
    assert bounds["analytic"] < min(bounds["fixed_small"], bounds["fixed_large"])
    assert run(monkeypatch, *wanted[:-1], "gpu") == 2
    assert run(monkeypatch, "eval", "prior", "--model", folders / "model", "--steps", "no") == 2
    assert "--steps: expected a whole number" in capsys.readouterr().err


def test_a_prior_of_analytic_variance_is_trained_and_then_calibrated(folders: Path) -> None:
    changes = ["train.steps=2", "train.batch_size=2", "train.num_samples=2", "train.val_every=0", "data.num_workers=0"]
    changes += ["task.measured_on=64", f"clip={folders / 'clip'}", f"train.out={folders / 'run'}", "data.size=32"]
    changes += ["model={width: 32, layers: 1, heads: 1, num_steps: 30, variance: analytic}"]
    train("configs/shapes/prior.yaml", changes)
    prior = load_stage(folders / "run", expect="prior")
    assert isinstance(prior, Prior)
    assert prior.calibrated
    with pytest.raises(UsageError, match="never measured"):
        prior.diffusion()
    where = str(folders / "run")
    assert calibrate(where, str(folders / "clip"), where, num=3, device="cpu") == 3
    assert load_stage(where).diffusion()[0].variance == "analytic"  # type: ignore[operator, union-attr]
