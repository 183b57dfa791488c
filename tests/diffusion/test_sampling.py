"""`draw`: everything that steers a run, by itself and together, is what the parts are by hand."""

from dataclasses import replace

import pytest
import torch
from golden_tools import check, load_case, make_input
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition
from t2i.diffusion.config import Diffusion
from t2i.diffusion.inpaint import keep_known, replaced
from t2i.diffusion.prediction import ModelDenoiser
from t2i.diffusion.samplers import ddim
from t2i.diffusion.sampling import Hooks, Sampling, draw

TOY = load_case("openai_process.json", "P-toy-process")
DIFFUSION = Diffusion(target="x0")
FORM, COSINE = DIFFUSION.parametrisation(), DIFFUSION.process()
PICTURE = Streams([1, 2], "picture").uniform(3, 8, 8) * 2 - 1
MASK = torch.zeros(2, 1, 8, 8)
MASK[:, :, 3:] = 1


def column(t: Tensor) -> Tensor:
    return t.float()[:, None, None, None]


def toy(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return torch.cat([0.9 * x + 0.05 * torch.sin(0.01 * column(t)), 0.3 * torch.tanh(x)], dim=1)


def soft(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """An x_0 that stays inside of the range."""
    shift = 0.0 if condition.vector is None else condition.vector[:, :, None, None]
    return torch.cat([0.4 * torch.tanh(x) + shift, 0.3 * torch.tanh(x)], dim=1)


def gradient(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * torch.cos(3 * x) * column(t) / 1000


def run(sampling: Sampling, hooks: Hooks = Hooks(), **changes: object) -> Tensor:
    """Two pictures with a condition of 0.3 and a null of -0.1."""
    given, null = Condition(vector=torch.full((2, 1), 0.3)), Condition(vector=torch.full((2, 1), -0.1))
    x_T, noise = Streams([3, 4]).normal(3, 8, 8), Streams([5, 6])
    return draw(soft, DIFFUSION, given, null, sampling, x_T, noise, hooks=replace(hooks, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "schedule", "sampling"),
    [
        ("ddim25_linear_cond", "linear", Sampling("ddim25", "ddim")),
        ("ancestral_cosine50_cond", "cosine", Sampling("50", "ddpm")),
        ("ddim25_linear_noclip", "linear", Sampling("ddim25", "ddim")),
    ],
)
def test_released_chains(name: str, schedule: str, sampling: Sampling) -> None:
    """The form of classifier guidance follows the sampler."""
    space = "latents" if "noclip" in name else "pixels"  # which have no bound
    diffusion = Diffusion(schedule=schedule, space=space)  # type: ignore[arg-type]
    x, noise = (make_input(TOY["inputs"]["x"]), make_input(TOY["inputs"]["step_noise"]).of(2))
    hooks = Hooks(gradient=gradient if "cond" in name else None)
    check(TOY["outputs"][name], draw(toy, diffusion, Condition(), None, sampling, x, noise, hooks=hooks))
    if space == "latents":
        bound = replace(sampling, clamp=False)
        pixels = Diffusion(schedule=schedule)  # type: ignore[arg-type]
        check(TOY["outputs"][name], draw(toy, pixels, Condition(), None, bound, x, noise, hooks=hooks))


def test_the_scale_multiplies_the_gradient() -> None:
    twice = run(Sampling(6), gradient=gradient, gradient_scale=2.0)
    torch.testing.assert_close(twice, run(Sampling(6), gradient=lambda x, t: 2 * gradient(x, t)))
    assert not torch.allclose(twice, run(Sampling(6), gradient=gradient))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver_pp_2m"])
def test_inpainting_goes_with_guidance(sampler: str) -> None:
    guided = Sampling(8, sampler, guidance=4.0)
    out = run(guided, processed=keep_known(PICTURE, MASK))
    assert torch.equal(out[:, :, 3:], PICTURE[:, :, 3:])
    assert not torch.allclose(
        out[:, :, :3], run(replace(guided, guidance=1.0), processed=keep_known(PICTURE, MASK))[:, :, :3]
    )
    assert out.isfinite().all()


def test_strength_0_returns_the_picture_and_1_goes_through_all_steps() -> None:
    steps = []

    def count(done: int, num_steps: int, x: Tensor, prediction: object) -> None:
        steps.append(num_steps)

    def edited(strength: float, sampling: Sampling = Sampling(8)) -> Tensor:
        steps.clear()
        x_T = Streams([3, 4]).normal(3, 8, 8)
        hooks = Hooks(start=PICTURE, strength=strength)
        return draw(soft, DIFFUSION, Condition(), None, sampling, x_T, Streams([5, 6]), hooks=hooks, callback=count)

    assert torch.equal(edited(0.0), PICTURE)
    assert steps == []
    half = edited(0.5)
    assert steps == [4] * 4
    process = COSINE.respace(8)
    x_t = process.q_sample(PICTURE, 3, Streams([3, 4]).normal(3, 8, 8))
    torch.testing.assert_close(
        half, ddim(ModelDenoiser(soft, Condition(), process.first(4), FORM), x_t, process.first(4))
    )
    whole = edited(1.0)
    assert steps == [8] * 8
    fresh = draw(soft, DIFFUSION, Condition(), None, Sampling(8), Streams([3, 4]).normal(3, 8, 8), Streams([5, 6]))
    torch.testing.assert_close(whole, fresh, atol=5e-3, rtol=0)
    cool = Sampling(8, temperature=0.0)
    assert not torch.allclose(edited(0.5, cool), half)


def test_an_edit_can_keep_a_part_and_follow_a_gradient() -> None:
    hooks = Hooks(start=PICTURE, strength=0.6, gradient=gradient, processed=keep_known(PICTURE, MASK))
    guided = Sampling(10, guidance=2.0)
    out = run(guided, hooks)
    torch.testing.assert_close(out[:, :, 3:], PICTURE[:, :, 3:])  # but for rounding: this gradient ends at 0
    assert not torch.allclose(out[:, :, :3], run(guided, hooks, gradient=None)[:, :, :3])


def test_a_wrapper_sees_the_kept_steps_and_stands_outside_of_everything() -> None:
    """What `replaced` shows is what the gradient is taken at, too."""
    seen: list[Tensor] = []
    noise = Streams([9, 9]).normal(3, 8, 8)

    def watch(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    run(Sampling(4), gradient=watch, wrap=lambda denoise, process: replaced(denoise, PICTURE, MASK, process, noise))
    process = COSINE.respace(4)
    assert len(seen) == 4
    for step, x_t in zip((3, 2, 1, 0), seen, strict=True):
        assert torch.equal(x_t[:, :, 3:], process.q_sample(PICTURE, step, noise)[:, :, 3:])


def test_without_hooks_nothing_changes() -> None:
    assert torch.equal(
        run(Sampling(6, "ddpm", guidance=3.0)), run(Sampling(6, "ddpm", guidance=3.0), Hooks(strength=0.5))
    )
    with pytest.raises(ValueError, match=r"lies in 0…1, got 2"):
        run(Sampling(4), start=PICTURE, strength=2.0)
