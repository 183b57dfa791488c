"""What is known of a picture stays, what is not is drawn; edits begin where they are told to."""

import pytest
import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Condition, Denoiser, Prediction
from t2i.diffusion.inpaint import keep_known, noised_start, replaced
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS, ddim, ddpm

FULL = Process.from_schedule("cosine")
FORM = Parametrisation("x0", "fixed_small")
NOTHING = Condition()
KNOWN = Streams([1, 2], "known").uniform(3, 8, 8) * 2 - 1
MASK = torch.zeros(2, 1, 8, 8)
MASK[:, :, :, :5] = 1


def flat(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Pictures of one colour, an unknown one: N(0, 1) in every channel, so that the mean of x_t tells it."""
    alpha_bar, num = FULL.at("alpha_bar", t, x), x[0, 0].numel()
    mean = FULL.at("sqrt_alpha_bar", t, x) * x.mean((2, 3), keepdim=True) / (alpha_bar + (1 - alpha_bar) / num)
    return mean.expand_as(x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_known_is_returned_exactly(sampler: str) -> None:
    process = FULL.respace(6)
    denoise = ModelDenoiser(flat, NOTHING, process, FORM, processed=keep_known(KNOWN, MASK))
    out = SAMPLERS[sampler](denoise, Streams([3, 4]).normal(3, 8, 8), process, noise=Streams([5, 6]))
    assert torch.equal(out[..., :5], KNOWN[..., :5])
    assert out[..., 5:].std() > 0
    assert (out[..., 5:] - KNOWN[..., 5:]).abs().mean() > 0.1


def test_the_known_part_is_kept_before_the_clamp() -> None:
    """So that what leaves the range is clamped like everything else."""
    process = FULL.respace(3)
    loud = ModelDenoiser(flat, NOTHING, process, FORM, processed=keep_known(3 * torch.ones_like(KNOWN), MASK))
    x_0 = loud(torch.zeros(2, 3, 8, 8), 1).x_0
    assert x_0[..., :5].eq(1).all()
    assert x_0[..., 5:].eq(0).all()


class Watched:
    """A denoiser that remembers what it saw."""

    def __init__(self, process: Process) -> None:
        self.inner = ModelDenoiser(flat, NOTHING, process, FORM, clamp=None)
        self.seen: dict[int, Tensor] = {}

    def __call__(self, x_t: Tensor, step: int) -> Prediction:
        self.seen[step] = x_t
        return self.inner(x_t, step)


def test_imputation_shows_the_known_part_as_noisy_as_the_step() -> None:
    process = FULL.respace(5)
    noise, x_T = Streams([5, 6]).normal(3, 8, 8), Streams([3, 4]).normal(3, 8, 8)
    for source in (noise, Streams([5, 6])):
        watched = Watched(process)
        ddim(replaced(watched, KNOWN, MASK, process, source), x_T, process)
        assert sorted(watched.seen) == [0, 1, 2, 3, 4]
        for step, x_t in watched.seen.items():
            fresh = process.q_sample(KNOWN, step, noise)[..., :5]
            assert torch.equal(x_t[..., :5], fresh) == (step == 4 or isinstance(source, Tensor))
            added = (x_t - process.at("sqrt_alpha_bar", step, x_t) * KNOWN)[..., :5]
            sigma = process.at("sqrt_one_minus_alpha_bar", step, x_t).item()
            assert added.std().item() == pytest.approx(sigma, rel=0.12)
        assert torch.equal(watched.seen[4][..., 5:], x_T[..., 5:])


def test_imputation_lets_the_rest_follow_what_is_known() -> None:
    """Pictures of one colour, half of which is known to be 0.6 in every channel."""
    process, known = FULL.respace(100), torch.full((8, 3, 8, 8), 0.6)
    mask = MASK[:1].expand(8, -1, -1, -1)
    denoise: Denoiser = ModelDenoiser(flat, NOTHING, process, FORM, clamp=None)
    x_T = Streams(range(8)).normal(3, 8, 8)
    alone = ddpm(denoise, x_T, process, noise=Streams(range(8), "a"))
    given = ddpm(replaced(denoise, known, mask, process, Streams(range(8), "b")), x_T, process,
                 noise=Streams(range(8), "a"))  # fmt: skip
    assert (alone - 0.6).abs().mean() > 0.5
    assert (given[..., 5:] - 0.6).abs().mean() < 0.2


def test_an_edit_begins_where_its_strength_says() -> None:
    process, noise = FULL.respace(10), Streams([1, 2]).normal(3, 8, 8)
    x_t, left = noised_start(process, KNOWN, 0.4, noise)
    assert left is not None
    assert left.num_steps == 4
    assert left.positions == process.positions[:4]
    torch.testing.assert_close(left.tables["alpha_bar"], process.tables["alpha_bar"][:4])
    torch.testing.assert_close(x_t, process.q_sample(KNOWN, 3, noise))
    whole, all_of_it = noised_start(process, KNOWN, 1.0, noise)
    assert all_of_it is not None
    assert all_of_it.positions == process.positions
    torch.testing.assert_close(whole, process.q_sample(KNOWN, 9, noise))
    untouched, nothing = noised_start(process, KNOWN, 0.0, noise)
    assert nothing is None
    assert torch.equal(untouched, KNOWN)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"lies in 0…1, got"):
            noised_start(process, KNOWN, strength, noise)


def test_the_weaker_an_edit_the_closer_it_stays() -> None:
    process, noise = FULL.respace(20), Streams([1, 2]).normal(3, 8, 8)
    distance = []
    for strength in (0.1, 0.5, 1.0):
        x_t, left = noised_start(process, KNOWN, strength, noise)
        assert left is not None
        x_0 = ddim(ModelDenoiser(flat, NOTHING, left, FORM), x_t, left)
        own, drawn = KNOWN.mean((2, 3)), x_0.mean((2, 3))
        distance.append((own - drawn).abs().mean().item())
    assert distance[0] < 0.05
    assert distance == sorted(distance)
