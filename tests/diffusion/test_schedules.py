"""Schedules and respacing against published tables."""

import math

import pytest
import torch

from t2i.diffusion.process import Process
from t2i.diffusion.schedules import SCHEDULES, linear, respaced_steps, squared_cosine

# schedule, T: beta[0], beta[1], beta[T/2], beta[-2], beta[-1], alpha_bar[0], alpha_bar[T/2], alpha_bar[-1]
BETAS = {
    ("linear", 1000): (1e-4, 1.199199199e-4, 0.01005995996, 0.01998008008, 0.02, 0.9999, 0.07779665837, 4.03583e-5),
    ("cosine", 1000): (
        *(4.128422482e-5, 4.614175274e-5, 0.003155691442, 0.7499993929, 0.999),
        *(0.999958715775, 0.4922851724, 2.42877e-9),
    ),
    ("linear", 4000): (
        *(2.5e-5, 2.624406102e-5, 0.002513122031, 0.004998755939, 0.005),
        *(0.999975, 0.07874647522, 4.24665e-5),
    ),
    ("cosine", 4000): (
        *(9.865818814e-6, 1.016941488e-5, 7.889355535e-4, 0.7499999621, 0.999),
        *(0.999990134181, 0.4934539797, 1.51798e-10),
    ),
}
# posterior log variance [0], [T/2], posterior variance [1], ln beta[0], sqrt(1/alpha_bar - 1)[-1]
DERIVED = {
    ("linear", 1000): (-9.81672514, -4.60004974, 5.4531877e-5, -9.210340, 157.40728),
    ("cosine", 1000): (-10.73408253, -5.76162185, 2.1789496e-5, -10.095030, 20291.17),
    ("linear", 4000): (-11.26578194, -5.98644484, 1.2803629e-5, -10.596635, 153.45019),
    ("cosine", 4000): (-12.20453715, -7.14559537, 5.0076834e-6, -11.526434, 81164.648),
}
# schedule, spec: beta[0], beta[1], beta[-1], posterior log variance [0]; all of 1000 steps
RESPACED = {
    ("cosine", "100"): (4.1284225e-5, 6.7984007e-4, 0.99999, -10.1539451),
    ("linear", "fast27"): (1e-4, 0.0072149534, 0.97212541, -9.2240067),
    ("linear", "250"): (1e-4, 5.9906556e-4, 0.077519345, -9.3646282),
    ("linear", "ddim25"): (1e-4, 0.020135089, 0.53260182, -9.2151950),
}
STEPS = {
    "fast27": "0 22 44 66 88 111 133 155 177 199 200 222 244 266 288 311 333 355 377 399 400 500 599 600 799 800 997",
    "27": "0 38 77 115 154 192 231 269 307 346 384 423 461 499 538 576 615 653 692 730 768 807 845 884 922 961 999",
    "25": "0 42 83 125 166 208 250 291 333 375 416 458 500 541 583 624 666 708 749 791 832 874 916 957 999",
    "10,10,3,2,2": (
        "0 22 44 66 88 111 133 155 177 199 200 222 244 266 288 311 333 355 377 399 400 500 599 600 799 800 999"
    ),
}
DDIM_LENGTHS = [*range(2, 37), 38, 39, 40, 42, 44, 46, 48, 50, 53, 56, 59, 63, 67, 72, 77, 84, 91, 100, 112, 125, 143]
DDIM_LENGTHS += [167, 200, 250, 334, 500, 1000]


def near(values: list[float], expected: tuple[float, ...]) -> None:
    assert values == pytest.approx(list(expected), rel=2e-6, abs=1e-15)


@pytest.mark.parametrize(("name", "num_steps"), BETAS)
def test_published_tables(name: str, num_steps: int) -> None:
    process, half = Process.from_schedule(name, num_steps), num_steps // 2
    betas, alpha_bar = process.betas, process.tables["alpha_bar"]
    assert betas.dtype == torch.float64
    near(
        [*betas[[0, 1, half, -2, -1]].tolist(), *alpha_bar[[0, half, -1]].tolist()],
        BETAS[name, num_steps],
    )
    log_variance, noise = process.tables["posterior_log_variance"], process.tables["sqrt_recip_alpha_bar_minus_1"]
    variance, log_betas = process.tables["posterior_variance"], process.tables["log_betas"]
    derived = [log_variance[0], log_variance[half], variance[1], log_betas[0], noise[-1]]
    near([float(v) for v in derived], DERIVED[name, num_steps])


@pytest.mark.parametrize(("name", "spec"), RESPACED)
def test_published_respaced_tables(name: str, spec: str) -> None:
    process = Process.from_schedule(name).respace(spec)
    log_variance = process.tables["posterior_log_variance"][0].item()
    near([*process.betas[[0, 1, -1]].tolist(), log_variance], RESPACED[name, spec])


@pytest.mark.parametrize("spec", STEPS)
def test_kept_steps(spec: str) -> None:
    assert respaced_steps(spec, 1000) == [int(s) for s in STEPS[spec].split()]


@pytest.mark.parametrize("num_steps", [1000, 4000])
@pytest.mark.parametrize("count", [25, 27, 50, 100, 150, 250, 500])
def test_a_number_spreads_evenly_from_first_to_last(count: int, num_steps: int) -> None:
    kept = respaced_steps(count, num_steps)
    assert kept == respaced_steps(str(count), num_steps)
    assert (len(kept), kept[0], kept[-1]) == (count, 0, num_steps - 1)
    assert max(abs(s - k * (num_steps - 1) / (count - 1)) for k, s in enumerate(kept)) <= 0.5 + 1e-9


def test_strides() -> None:
    assert respaced_steps("ddim50", 1000) == list(range(0, 1000, 20))
    assert respaced_steps("ddim25", 1000) == list(range(0, 1000, 40))
    assert respaced_steps("ddim250", 4000) == list(range(0, 4000, 16))
    works = []
    for n in range(1, 1001):
        try:
            assert len(respaced_steps(f"ddim{n}", 1000)) == n
            works.append(n)
        except ValueError:
            pass
    assert works == DDIM_LENGTHS


def test_extremes() -> None:
    assert respaced_steps(1, 1000) == [999]
    assert respaced_steps(1000, 1000) == list(range(1000))
    assert respaced_steps([7, 3, 3], 10) == [3, 7]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ddim51", r"ddim51.*1000 steps.*50, 53"),
        ("ddimx", "ddimx"),
        ("1001", "1001.*at most 1000"),
        ("10,600", "600 steps, but there are at most 500"),
        ("fast", "'fast'.*fast27"),
        ("0", "cannot read"),
        ("", "cannot read"),
        ([0, 1000], "0…999"),
        ([], "one at least"),
    ],
)
def test_impossible_specs_are_explained(spec: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        respaced_steps(spec, 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [50, 500, 1000, 4000])
def test_fast27_of_any_process_is_its_sections_but_for_the_last_step(num_steps: int) -> None:
    """As GLIDE's code has it: T - 1 is taken out of "10,10,3,2,2", and T - 3 put in."""
    sections = respaced_steps("10,10,3,2,2", num_steps)
    assert respaced_steps("fast27", num_steps) == [*sections[:-1], num_steps - 3]
    assert sections[-1] == num_steps - 1


def test_fast27_of_too_short_a_process_is_explained() -> None:
    with pytest.raises(ValueError, match="asks for 10 steps, but there are at most 9"):
        respaced_steps("fast27", 45)


def test_schedules_of_any_length() -> None:
    assert set(SCHEDULES) == {"linear", "cosine"}
    for schedule in SCHEDULES.values():
        for num_steps in (21, 64, 333):
            betas = schedule(num_steps)
            assert betas.shape == (num_steps,)
            assert bool(((betas > 0) & (betas < 1)).all())
    assert squared_cosine(5)[-1].item() == 0.999
    assert math.isclose(linear(500)[0].item(), 2e-4)
    with pytest.raises(ValueError, match="at least 21 steps, got 20"):
        linear(20)
